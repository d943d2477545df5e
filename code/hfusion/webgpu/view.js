// What a lab shows. From a record alone, so that a file opened shows what its own run did.

const SOFTWARE = "This adapter is software: the browser computes on the processor, not on a GPU. "
  + "The results are right, and the dispatches are counted; the times say nothing about GPUs, "
  + "and no gain is shown.";
const MEANING = "A dispatch of WebGPU is a launch on your GPU. It is not PyTorch's launch on CUDA: "
  + "the browser checks each one and hands it to another process. So compare rows with each "
  + "other, not these times with those of another program.";
const CLOCKS = {
  device: "Times are by the GPU's own clock.",
  wall: "Times are by the page's clock, from handing over until the work is done: this GPU offers "
    + "no clock of its own.",
};

// An adapter without a name may be software. Hardly anything that is a GPU is as slow as this.
const SLOW_GFLOPS = 20;

// Why no gain is shown; null if there is no reason.
function doubtOf(record) {
  if (record.machine.software) return SOFTWARE;
  const rate = rateOf(record, counting(record)[0].parameters.clock);
  if (!nameless(record.machine) || rate === null || rate >= SLOW_GFLOPS) return null;
  return `This looks like a software adapter: the browser does not name it, and ${number(rate)} GFLOP/s is `
    + "what a processor does. So no gain is shown.";
}

function ladderView(record) {
  const [{ samples, launches, parameters }] = counting(record), names = Object.keys(samples);
  const { module, batch, clock } = parameters, doubt = doubtOf(record), rate = rateOf(record, clock);
  const { widths, size } = MODULES[module] ?? {};
  const times = Object.fromEntries(names.map((name) => [name, quartiles(samples[name])]));
  const gain = (name, of = samples) => gains(of[names[0]], of[name]);
  const share = (name) => (widths && rate
    ? `${(flopsOf(widths, size, batch) / times[name][1] / 10 / rate).toFixed(0)}%` : "–");
  const rows = names.map((name) => [name, String(launches[name]), number(times[name][1]),
    ...(doubt ? [] : [spread(gain(name), ratio), share(name)])]);
  const heads = ["variant", "dispatches", "µs", ...(doubt ? [] : ["gain (quartiles)", "share of rate"])];
  const numbers = table(`Module ${module}, batch ${batch}`, heads, rows);
  if (doubt) return { doubt, clock, said: [], parts: [numbers] };
  const [first, last] = [names[0], names[names.length - 1]];
  const said = [`${launches[first]} launches became ${launches[last]}, and the module takes `
    + `${number(times[last][1])} µs instead of ${number(times[first][1])}: ${ratio(gain(last)[1])} `
    + `times as fast (quartiles ${range(gain(last), ratio)}).`];
  const wall = record.cases.find((one) => clock === "device" && one.parameters.clock === "wall");
  if (wall) said[0] += ` By the page's clock, ${ratio(gain(last, wall.samples)[1])} times.`;
  if (rate) {
    said.push(`One large product by the same kernel reaches ${number(rate)} GFLOP/s on this GPU. `
      + "The last column is the share of that rate which the module reaches.");
  }
  return { clock, said, parts: [bars(names.map((name) => [name, times[name]])), numbers] };
}

function launchesView(record) {
  const cases = counting(record), { clock } = cases[0].parameters, doubt = doubtOf(record);
  const ns = cases.map(({ parameters }) => parameters.n), longest = ns[ns.length - 1];
  const series = WAYS.map((way) => {
    const times = cases.map(({ samples }) => samples[way]);
    return { way, spreads: times.map(quartiles), ...lines(ns, times) };
  });
  const apart = cases.map(({ samples }) => gains(samples[WAYS[1]], samples[WAYS[0]]));
  const rows = ns.map((n, i) => [count(n), ...series.map(({ spreads }) => number(spreads[i][1])),
    ...(doubt ? [] : [spread(apart[i], ratio)])]);
  const said = series.map(({ way, a, b }) =>
    `With ${way}: t = a + b n, a = ${spread(a)} µs, b = ${spread(b)} µs for each launch.`);
  if (!doubt) {
    const [, times] = apart[ns.length - 1];
    said.push(`Handed over one by one, ${count(longest)} launches take ${ratio(times)} times as long `
      + `as in one submit (quartiles ${range(apart[ns.length - 1], ratio)}). One by one, each launch `
      + "pays for the way from the page to the GPU, as in a program that launches eagerly. In one "
      + "submit that is paid once, as in a CUDA graph; what is left is what the GPU needs from one "
      + "launch to the next, or the browser to record one more, whichever takes longer.");
  }
  const label = `Time over the number of launches, from ${ns[0]} to ${longest}, with one submit and `
    + "with a submit each; the table has the numbers.";
  const heads = ["n", ...WAYS, ...(doubt ? [] : ["each / one"])];
  return { doubt, clock, said, parts: [plot(ns, series, label), table("Medians in µs", heads, rows)] };
}

// Everything there is to say about a record, as nodes.
function shown(kind, record, own) {
  const { doubt, said, parts, clock, note = MEANING } = LABS[kind].view(record);
  const { rounds, differ, entries } = record.protocol;
  const paragraph = (text, name) => element("p", name ? { class: `fs-lab-${name}` } : {}, text);
  const origin = `${own ? "Measured" : "From the file: recorded"} on ${record.machine.device}, `
    + `${record.date}, ${rounds} rounds. ${count(differ)} of ${count(entries)} entries differ from `
    + "float64.";
  return [
    paragraph(origin, "origin"), ...(doubt ? [paragraph(doubt, "large")] : []),
    ...said.map((text) => paragraph(text)), ...parts,
    paragraph(`${CLOCKS[clock]} ${note}`, "note"),
  ];
}
