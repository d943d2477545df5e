// The concatenation: copies four branches to their places. One thread for
// one pixel and four channels of the output; a job for each branch says
// where its channels begin and end.

@group(0) @binding(0) var<uniform> table: array<Job, 4>;
@group(0) @binding(1) var<storage, read> b1: array<vec4f>;
@group(0) @binding(2) var<storage, read> b3: array<vec4f>;
@group(0) @binding(3) var<storage, read> b5: array<vec4f>;
@group(0) @binding(4) var<storage, read> pooled: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4f>;

@compute @workgroup_size(64)
fn concat(@builtin(global_invocation_id) id: vec3u) {
  let stride = table[0].y_stride;
  let p = id.x / stride;
  if (p >= table[0].pixels) {
    return;
  }
  var k = id.x % stride;
  var branch = 0u;
  while (k >= table[branch].c_out) {
    k -= table[branch].c_out;
    branch++;
  }
  let place = table[branch].x_offset + p * table[branch].x_stride + k;
  switch (branch) {
    case 0u: { y[id.x] = b1[place]; }
    case 1u: { y[id.x] = b3[place]; }
    case 2u: { y[id.x] = b5[place]; }
    default: { y[id.x] = pooled[place]; }
  }
}
