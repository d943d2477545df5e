// The least that a launch can be: 64 threads add one to a number each.
// After n launches, in any order, each number must be n.

@group(0) @binding(0) var<storage, read_write> y: array<f32, 64>;

@compute @workgroup_size(64)
fn tick(@builtin(local_invocation_index) thread: u32) {
  y[thread] += 1.0;
}
