// What a lab shows. From a record alone, so that a file opened shows what its own run did.

function element(tag, attributes = {}, ...content) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...content);
  return made;
}

const number = (value, digits = 3) => {
  const places = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value) || 1)));
  return value.toLocaleString("en", { maximumFractionDigits: Math.min(places, 3) });
};
const range = ([low, , high], show = number) => `${show(low)} to ${show(high)}`;
const ratio = (value) => value.toFixed(2);

const SOFTWARE = "This adapter is software: the browser computes on the processor, not on a GPU. The results are right, and the "
  + "dispatches are counted; the times say nothing about GPUs, and no gain is shown.";
const MEANING = "A dispatch of WebGPU is a launch on your GPU. It is not PyTorch's launch on CUDA: the browser checks each one and "
  + "hands it to another process. So compare rungs with each other, not these times with those of another program.";
const CLOCKS = { device: "Times are by the GPU's own clock.",
  wall: "Times are by the page's clock, from handing over until the work is done: this GPU offers no clock of its own." };

// An adapter without a name may be software. Nothing that is a GPU is as slow as this.
const SLOW_GFLOPS = 20;
function doubtOf(record) {
  if (record.machine.software) return SOFTWARE;
  const rate = rateOf(record, counting(record)[0].parameters.clock);
  return nameless(record.machine) && rate !== null && rate < SLOW_GFLOPS
    ? `This browser does not name its adapter, and ${number(rate)} GFLOP/s is what a processor does. It may be software; no gain is shown.` : null;
}

function table(caption, heads, rows) {
  const cells = (row, tag) => row.map((cell, i) => element(i ? tag : "th", { ...(i === 0 && tag === "td" && { scope: "row" }), ...(tag === "th" && { scope: "col" }) }, cell));
  const made = element("table", {}, element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...cells(heads, "th"))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells(row, "td")))));
  // It may be wider than a phone; then it is scrolled, by keyboard too.
  return element("div", { class: "fs-lab-wide", tabindex: "0", role: "region", "aria-label": caption }, made);
}

// Medians as bars, with their quartiles. The table says the same.
function bars(rows) {
  const most = Math.max(...rows.map(([, [, , high]]) => high)), share = (us) => `${(100 * us) / most}%`;
  return element("div", { class: "fs-lab-bars", "aria-hidden": "true" }, ...rows.map(([name, [low, middle, high]]) =>
    element("div", {}, element("span", {}, name), element("span", { class: "fs-lab-track" },
      element("i", { style: `width:${share(middle)}` }),
      element("b", { style: `left:${share(low)};width:${share(high - low)}` })))));
}

function svg(tag, attributes, ...content) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...content);
  return made;
}

// Times over n, both axes logarithmic: medians with quartiles, and the lines that were fitted.
function plot(ns, series, label) {
  const [left, right, top, bottom] = [52, 348, 34, 226], log = Math.log10;
  const times = series.flatMap(({ spreads }) => spreads.flat());
  const [low, high] = [Math.floor(log(Math.min(...times))), Math.ceil(log(Math.max(...times)))];
  const ends = [Math.log10(ns[0]) - 0.08, log(ns[ns.length - 1]) + 0.08];
  const x = (n) => left + ((right - left) * (log(n) - ends[0])) / (ends[1] - ends[0]);
  const y = (us) => bottom - ((bottom - top) * (log(us) - low)) / (high - low);
  const made = svg("svg", { viewBox: "0 0 360 266", role: "img", "aria-label": label });
  const say = (at, to, text, anchor) => made.append(svg("text", { x: at, y: to, "text-anchor": anchor }, text));
  for (let power = low; power <= high; power++) {
    made.append(svg("path", { class: "fs-lab-grid", d: `M${left} ${y(10 ** power)}H${right}` }));
    say(left - 6, y(10 ** power) + 4, (10 ** power).toLocaleString("en"), "end");
  }
  ns.filter((n) => Number.isInteger(log(n))).forEach((n) => say(x(n), bottom + 17, n.toLocaleString("en"), "middle"));
  say((left + right) / 2, bottom + 35, "launches, n", "middle");
  say(left - 6, 14, "µs", "end");
  const mark = (i, cx, cy) => (i ? svg("rect", { class: `fs-lab-${i}`, x: cx - 3.5, y: cy - 3.5, width: 7, height: 7 })
    : svg("circle", { class: `fs-lab-${i}`, cx, cy, r: 4 }));
  series.forEach(({ way, line: [a, b], spreads }, i) => {
    const curve = Array.from({ length: 40 }, (_, j) => 10 ** (log(ns[0]) + (j / 39) * (log(ns[ns.length - 1]) - log(ns[0]))))
      .filter((n) => a + b * n >= 10 ** low && a + b * n <= 10 ** high);
    made.append(svg("path", { class: `fs-lab-line fs-lab-${i}`, d: `M${curve.map((n) => `${x(n).toFixed(1)} ${y(a + b * n).toFixed(1)}`).join("L")}` }));
    spreads.forEach(([first, middle, last], j) => made.append(
      svg("path", { class: `fs-lab-line fs-lab-${i}`, d: `M${x(ns[j])} ${y(first)}V${y(last)}` }),
      mark(i, x(ns[j]), y(middle))));
    made.append(mark(i, left + 12 + 110 * i, 10));
    say(left + 22 + 110 * i, 14, way, "start");
  });
  return made;
}

function ladderView(record) {
  const counted = counting(record)[0], { samples, launches, parameters } = counted, names = Object.keys(samples);
  const base = samples[names[0]], doubt = doubtOf(record), rate = rateOf(record, parameters.clock);
  const spread = Object.fromEntries(names.map((name) => [name, quartiles(samples[name])]));
  const gain = Object.fromEntries(names.map((name) => [name, gains(base, samples[name])]));
  const { widths, size } = MODULES[parameters.module] ?? {};
  const share = (us) => (widths && rate ? flopsOf(widths, size, parameters.batch) / us / 1000 / rate : null);
  const heads = ["rung", "dispatches", "µs", ...(doubt ? [] : ["gain (quartiles)", "share of rate"])];
  const rows = names.map((name) => [name, String(launches[name]), number(spread[name][1]),
    ...(doubt ? [] : [`${ratio(gain[name][1])} (${range(gain[name], ratio)})`, share(spread[name][1]) === null ? "–" : `${(100 * share(spread[name][1])).toFixed(0)}%`])]);
  const last = names[names.length - 1], said = [];
  if (!doubt) {
    said.push(`${launches[names[0]]} launches became ${launches[last]}, and the module takes ${number(spread[last][1])} µs instead of `
      + `${number(spread[names[0]][1])}: ${ratio(gain[last][1])} times as fast (quartiles ${range(gain[last], ratio)}).`);
    if (rate) said.push(`One large product by the same kernel reaches ${number(rate)} GFLOP/s on this GPU. The last column is the share of that rate which the module reaches.`);
  }
  return {
    doubt, said,
    parts: [...(doubt ? [] : [bars(names.map((name) => [name, spread[name]]))]),
      table(`Module ${parameters.module}, batch ${parameters.batch}`, heads, rows)],
    clock: parameters.clock,
  };
}

function launchesView(record) {
  const cases = counting(record), clock = cases[0].parameters.clock, doubt = doubtOf(record);
  const ns = cases.map(({ parameters }) => parameters.n);
  const series = WAYS.map((way) => {
    const times = cases.map(({ samples }) => samples[way]), { a, b } = lines(ns, times);
    return { way, times, spreads: times.map(quartiles), a, b, line: [a[1], b[1]] };
  });
  const [together, apart] = series, last = ns.length - 1;
  const times = ns.map((_, i) => gains(apart.times[i], together.times[i]));
  const rows = ns.map((n, i) => [n.toLocaleString("en"), ...series.map(({ spreads }) => number(spreads[i][1])),
    ...(doubt ? [] : [`${ratio(times[i][1])} (${range(times[i], ratio)})`])]);
  const said = series.map(({ way, a, b }) =>
    `With ${way}: t = a + b n, a = ${number(a[1])} µs (${range(a)}), b = ${number(b[1])} µs for each launch (${range(b)}).`);
  if (!doubt) {
    said.push(`Handed over one by one, ${ns[last].toLocaleString("en")} launches take ${ratio(times[last][1])} times as long as in one submit `
      + `(quartiles ${range(times[last], ratio)}). One by one, each launch pays for the way from page to GPU, as in a program that launches eagerly. In one `
      + "submit that is paid once, as in a CUDA graph; what is left for each is about what the GPU itself needs between two.");
  }
  return {
    doubt, said, clock,
    parts: [plot(ns, series, `Time over the number of launches, from ${ns[0]} to ${ns[last]}, with one submit and with a submit each; the table has the numbers.`),
      table("Medians in µs", ["n", ...WAYS, ...(doubt ? [] : ["each / one"])], rows)],
  };
}

// Everything there is to say about a record, as nodes.
function shown(kind, record, own) {
  const { doubt, said, parts, clock } = (kind === "ladder" ? ladderView : launchesView)(record), { protocol } = record;
  const words = (text, attributes = {}) => element("p", attributes, text);
  return [
    words(`${own ? "Measured" : "From the file: recorded"} on ${record.machine.device}, ${record.date}, ${protocol.rounds} rounds. `
      + `${protocol.differ.toLocaleString("en")} of ${protocol.entries.toLocaleString("en")} entries differ from float64.`, { class: "fs-lab-origin" }),
    ...(doubt ? [words(doubt, { class: "fs-lab-large" })] : []),
    ...said.map((text) => words(text)), ...parts,
    words(`${CLOCKS[clock]} ${MEANING}`, { class: "fs-lab-note" }),
  ];
}
