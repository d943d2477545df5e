
// A branch copied to a place of its own: one thread for one pixel and four
// channels. It reads a part of a matrix and writes a matrix that is
// contiguous. Of a whole matrix it is a plain copy, which measures the
// memory's bandwidth.
@compute @workgroup_size(64)
fn copy(@builtin(global_invocation_id) id: vec3u) {
  let job = table[0];
  let p = id.x / job.c_out;
  let k = id.x % job.c_out;
  if (p < job.pixels) {
    put(job, p, k, x[job.x_offset + p * job.x_stride + k]);
  }
}
