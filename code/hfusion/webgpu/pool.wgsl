// A 3×3 max pool of stride 1: one thread for one pixel and four channels.
//
// Outside of the image there is nothing to compare with. The nearest pixel
// inside is one of the nine anyway, and a maximum does not mind being told
// twice: clamp, and no test is needed.

fn pool_item(job: Job, item: u32) {
  let p = item / job.c_out;
  let k = item % job.c_out;
  if (p >= job.pixels) {
    return;
  }
  let last = vec2i(i32(job.width), i32(job.height)) - 1;
  let place = vec2i(i32(p % job.width), i32((p / job.width) % job.height));
  var most = x[job.x_offset + p * job.x_stride + k];
  for (var tap = 0; tap < 9; tap++) {
    let there = clamp(place + vec2i(tap % 3, tap / 3) - 1, vec2i(), last);
    let shift = there - place;
    let neighbour = u32(i32(p) + shift.y * i32(job.width) + shift.x);
    most = max(most, x[job.x_offset + neighbour * job.x_stride + k]);
  }
  put(job, p, k, most);
}
