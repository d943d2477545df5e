// What one part of a dispatch has to do. Activations are NHWC, so they are
// matrices, a pixel a row; channels are counted in vec4f, four at a time. A
// view of a matrix is an offset, where it begins, and a stride, from one
// pixel to the next: a part of the channels is a view, too.
struct Job {
  kind: u32,      // PRODUCT or POOL, where a dispatch has both
  until: u32,     // the workgroup with which the next job begins
  pixels: u32,    // N·H·W
  height: u32,
  width: u32,
  side: u32,      // of the window: 1, 3 or 5
  c_in: u32,      // vec4f
  c_out: u32,     // vec4f
  x_offset: u32,
  x_stride: u32,
  w_offset: u32,  // weights are [side²·C, K], a row a tap and channel
  w_stride: u32,
  scale: u32,     // where a norm's factors begin, among the weights
  shift: u32,     // where a norm's summands, or a bias, begin
  epilogue: u32,  // 0: the sum, 1: plus bias, 2: plus bias, then ReLU
  y_offset: u32,
  y_stride: u32,
  cut: u32,       // channels from here on go to z instead of y
  z_offset: u32,
  z_stride: u32,
}

// max(v, 0) may drop a NaN; this keeps it, so that memory nobody has
// written is seen.
fn relu_of(v: vec4f) -> vec4f {
  return select(v, vec4f(), v < vec4f());
}
