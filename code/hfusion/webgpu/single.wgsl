// A dispatch that does one thing: a product, a pooling, a norm, or a ReLU.
// Each is a launch. norm and relu are one thread for one pixel and four
// channels, and do next to nothing: they read a number, and write a number.
// All they cost is memory's time, and the launch.

@group(0) @binding(0) var<uniform> table: array<Job, 1>;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(2) var<storage, read> weights: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4f>;

fn put(job: Job, p: u32, k: u32, value: vec4f) {
  y[job.y_offset + p * job.y_stride + k] = value;
}

@compute @workgroup_size(64)
fn product(
  @builtin(workgroup_id) group: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  product_tile(table[0], group.x, thread);
}

@compute @workgroup_size(64)
fn pool(@builtin(global_invocation_id) id: vec3u) {
  pool_item(table[0], id.x);
}

// scale and shift were made of mean, variance, γ and β beforehand, as
// PyTorch's kernel does: WGSL's inverseSqrt may err in the last digits, and
// here every digit counts.
@compute @workgroup_size(64)
fn norm(@builtin(global_invocation_id) id: vec3u) {
  let job = table[0];
  let p = id.x / job.c_out;
  let k = id.x % job.c_out;
  if (p < job.pixels) {
    let value = x[job.x_offset + p * job.x_stride + k];
    put(job, p, k, value * weights[job.scale + k] + weights[job.shift + k]);
  }
}

@compute @workgroup_size(64)
fn relu(@builtin(global_invocation_id) id: vec3u) {
  let job = table[0];
  let p = id.x / job.c_out;
  let k = id.x % job.c_out;
  if (p < job.pixels) {
    put(job, p, k, relu_of(x[job.x_offset + p * job.x_stride + k]));
  }
}
