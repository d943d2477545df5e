// One tile of a convolution as a matrix product: 32 pixels × 32 channels,
// by 64 threads.
//
//     Y [pixels, K] = X' [pixels, side²·C] · W [side²·C, K]
//
// For a 1×1, X' is the input as it lies in memory. For a 3×3 or 5×5 each
// tap of the window adds C columns to X': the same pixels, shifted, with
// zeros outside of the image. X' is never written anywhere (an implicit
// GEMM): a column's tap and channel follow from its number.
//
// In steps of 32 columns the workgroup copies a piece of X' and one of W
// into its own memory, 4 KB each, so that a number read once is used 32
// times. A thread has 4 pixels × 4 channels in registers: for 32 numbers
// that it reads there it does 64 multiply-adds.

// 32 pixels, and one unused, so that threads do not meet in a bank of memory.
const ROWS = 33u;

var<workgroup> x_tile: array<vec4f, 264>; // [8 vec4f of columns][ROWS]
var<workgroup> w_tile: array<vec4f, 256>; // [32 rows][8 vec4f of channels]

fn product_tile(job: Job, tile: u32, thread: u32) {
  let across = (job.c_out + 7u) / 8u; // neighbours share their pixels
  let column = thread % 8u;
  let row = thread / 8u;
  let k = (tile % across) * 8u + column;
  let first = (tile / across) * 32u + row; // its pixels: + 0, 8, 16, 24
  let depth = job.side * job.side * job.c_in;
  let radius = i32(job.side / 2u);
  let size = vec2i(i32(job.width), i32(job.height));

  var places: array<vec2i, 4>;
  for (var i = 0u; i < 4u; i++) {
    let p = first + 8u * i;
    let line = p / job.width;
    places[i] = vec2i(i32(p % job.width), i32(line % job.height));
  }

  var acc = mat4x4f(); // four channels × four pixels
  for (var step = 0u; step < depth; step += 8u) {
    let d = step + column;
    let tap = d / job.c_in;
    let shift = vec2i(i32(tap % job.side), i32(tap / job.side)) - radius;
    for (var i = 0u; i < 4u; i++) {
      let p = first + 8u * i;
      let place = places[i] + shift;
      var value = vec4f();
      let inside = all(place >= vec2i()) && all(place < size);
      if (d < depth && p < job.pixels && inside) {
        let neighbour = u32(i32(p) + shift.y * size.x + shift.x);
        value = x[job.x_offset + neighbour * job.x_stride + d % job.c_in];
      }
      x_tile[column * ROWS + row + 8u * i] = value;

      let r = row + 8u * i;
      value = vec4f();
      if (4u * step + r < 4u * depth && k < job.c_out) {
        value = weights[job.w_offset + (4u * step + r) * job.w_stride + k];
      }
      w_tile[r * 8u + column] = value;
    }
    workgroupBarrier(); // the pieces are there
    for (var j = 0u; j < 8u; j++) {
      let w4 = mat4x4f(
        w_tile[32u * j + column],
        w_tile[32u * j + 8u + column],
        w_tile[32u * j + 16u + column],
        w_tile[32u * j + 24u + column],
      );
      let x4 = mat4x4f(
        x_tile[j * ROWS + row],
        x_tile[j * ROWS + row + 8u],
        x_tile[j * ROWS + row + 16u],
        x_tile[j * ROWS + row + 24u],
      );
      acc += w4 * x4; // four deep, 64 multiply-adds
    }
    workgroupBarrier(); // and no longer needed
  }

  if (k >= job.c_out) {
    return;
  }
  var bias = vec4f();
  if (job.epilogue > 0u) {
    bias = weights[job.shift + k];
  }
  for (var i = 0u; i < 4u; i++) {
    let p = first + 8u * i;
    if (p < job.pixels) {
      let sum = acc[i] + bias;
      put(job, p, k, select(sum, relu_of(sum), job.epilogue > 1u));
    }
  }
}
