// What a program costs before anybody runs it: the formulas of cost.py, under its names. Pure.
// Counts are exact below 2 ** 53. A kernel: {flops, bytes, launches}. Ceilings: {flops_per_s,
// bytes_per_s, launch_s, kernel_s, overlaps}.

const cost = (() => {
  const PARTS = ["input", "weight", "output"];
  const kernel = (flops, bytes, launches = 1) => ({ flops, bytes, launches });
  const sum = (numbers) => numbers.reduce((total, one) => total + one, 0);

  function product(c_out, c_in, positions, item_bytes) {
    const flops = 2 * c_out * c_in * positions + c_out * positions;
    const numbers = c_in * positions + c_out * c_in + c_out + c_out * positions;
    return kernel(flops, numbers * item_bytes);
  }

  function add_bias(c_out, positions, item_bytes) {
    const numbers = 2 * c_out * positions + c_out; // the output is read and written again
    return kernel(c_out * positions, numbers * item_bytes);
  }

  function reorder(c_out, c_in, positions, item_bytes, parts) {
    const sizes = [c_in * positions, c_out * c_in, c_out * positions];
    const numbers = sum(parts.map((part) => sizes[PARTS.indexOf(part)]));
    return kernel(0, 2 * numbers * item_bytes, 0);
  }

  const copy = (channels, positions, item_bytes) => kernel(0, 2 * channels * positions * item_bytes);

  // Siblings three ways: {separate, stacked, copied}, each a list of kernels.
  function stage(sizes, c_in, positions, item_bytes, options = {}) {
    const { reordered = [], copied = [], bias_apart = false } = options;
    const convolution = (c_out) => {
      const shape = [c_out, c_in, positions, item_bytes], whole = product(...shape);
      const inside = reordered.length ? [reorder(...shape, reordered)] : [];
      if (!bias_apart) return [whole, ...inside];
      const bias = add_bias(c_out, positions, item_bytes);
      const alone = kernel(whole.flops - bias.flops, whole.bytes - c_out * item_bytes);
      return [alone, ...inside, bias];
    };
    const stacked = convolution(sum(sizes));
    return {
      separate: sizes.flatMap(convolution),
      stacked,
      copied: [...stacked, ...copied.map((size) => copy(size, positions, item_bytes))],
    };
  }

  function seconds(kernels, ceilings, graph = false) {
    const together = (...times) => (ceilings.overlaps ? Math.max(...times) : sum(times));
    const device_s = sum(kernels.map(({ flops, bytes }) => Math.max(ceilings.kernel_s,
      together(flops / ceilings.flops_per_s, bytes / ceilings.bytes_per_s))));
    const host_s = sum(kernels.map(({ launches }) => launches)) * ceilings.launch_s;
    return graph ? device_s : together(host_s, device_s);
  }

  const gain = (before, after, ceilings, graph = false) =>
    seconds(before, ceilings, graph) / seconds(after, ceilings, graph);

  return { product, add_bias, reorder, copy, stage, seconds, gain };
})();
