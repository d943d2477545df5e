// A dispatch that does several unlike things at once: half of a module.
//
//     launch 1   x ─► stacked 1×1, bias, ReLU ─┬► y (b1: its place in the output)
//                                              └► z (r3, r5)
//                x ─► 3×3 max pool ────────────► z (pooled)
//     launch 2   z ─► 3×3, 5×5 and pooled 1×1, bias, ReLU ─► y, each to its place
//
// Each workgroup looks up in the table whose tile it is. All its threads
// find the same job, so a barrier within it is legal. The split is a
// comparison when a number is written, and the concatenation is where it is
// written: neither is a launch, neither copies.

const PRODUCT = 0u;
// WGSL clears a kernel's workgroup memory before every workgroup, also where
// it only pools, so a thread pools for so many pixels: fewer are cleared.
const POOLED = 8u;

@group(0) @binding(0) var<uniform> table: array<Job, 4>;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(2) var<storage, read> weights: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> z: array<vec4f>;

fn put(job: Job, p: u32, k: u32, value: vec4f) {
  if (k < job.cut) {
    y[job.y_offset + p * job.y_stride + k] = value;
  } else {
    z[job.z_offset + p * job.z_stride + k - job.cut] = value;
  }
}

@compute @workgroup_size(64)
fn routed(
  @builtin(workgroup_id) group: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  var i = 0u;
  var begin = 0u;
  while (group.x >= table[i].until) {
    begin = table[i].until;
    i++;
  }
  if (table[i].kind == PRODUCT) {
    product_tile(table[i], group.x - begin, thread);
  } else {
    let first = (group.x - begin) * POOLED * 64u + thread;
    for (var n = 0u; n < POOLED; n++) {
      pool_item(table[i], first + 64u * n);
    }
  }
}
