// THE WRONG WAY, to be looked at and never timed: a branch in one dispatch.
//
//     both = [x | reduced], side by side in one memory
//     x ─► 1×1, bias, ReLU ─► reduced ─► 3×3, bias, ReLU ─► y
//
// A tile of the 3×3 needs its neighbours' reduced pixels, and all reduced
// channels. Other workgroups compute them in the same dispatch, and WebGPU
// orders workgroups in no way: they may be read before they are written. The
// barrier orders this workgroup's own threads, and no others. No loop waits
// for a number and no address comes from one, so wrong numbers are the worst
// that can happen.

@group(0) @binding(0) var<uniform> table: array<Job, 4>;
@group(0) @binding(1) var<storage, read_write> x: array<vec4f>;
@group(0) @binding(2) var<storage, read> weights: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4f>;

fn put(job: Job, p: u32, k: u32, value: vec4f) {
  if (k < job.cut) {
    y[job.y_offset + p * job.y_stride + k] = value;
  } else {
    x[job.z_offset + p * job.z_stride + k - job.cut] = value;
  }
}

@compute @workgroup_size(64)
fn unordered(
  @builtin(workgroup_id) group: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  if (group.x < table[0].until) {
    product_tile(table[0], group.x, thread);
  }
  storageBarrier(); // for this workgroup alone
  if (group.x < table[1].until) {
    product_tile(table[1], group.x, thread);
  }
}
