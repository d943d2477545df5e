// What the sweep says: the estimate beside the time, case by case, and how often its sign was right.
// From a record alone; the estimate is that of cost.js with the ceilings that the record has.

let BOOK = []; // [{label, copies, gains: {"3a, 28×28, batch 1": {stacked: quartiles, copied: quartiles}}}]

const WAYS_OF_STACKING = STAGE.slice(1);

// Of each case: its name, its times, and of both ways of stacking what was said and what was.
function verdicts(cases, protocol) {
  return cases.map(({ parameters: p, samples }) => {
    const sizes = [p.first, p.second, p.third], limits = limitsOf(protocol, p.clock);
    const kernels = cost.stage(sizes, p.c_in, positionsOf(p), 4, { copied: sizes });
    const of = (way) => ({
      said: cost.gain(kernels.separate, kernels[way], limits, true), was: gains(samples.separate, samples[way]),
    });
    return {
      name: named({ row: p.siblings, ...p }), times: all(STAGE, (way) => quartiles(samples[way])[1]),
      estimated_us: all(STAGE, (way) => 1e6 * cost.seconds(kernels[way], limits, true)),
      ...all(WAYS_OF_STACKING, of),
    };
  });
}

const median = (numbers) => quartiles(numbers)[1];

// How often the sign was right, where the estimate makes a call: it says more or less than 1. And
// how far off it is, in the median, as a share. Both for a guess that always says the median gain.
function score(rows) {
  const pairs = rows.flatMap((row) => WAYS_OF_STACKING.map((way) => row[way]));
  const called = pairs.filter(({ said }) => Math.abs(said - 1) > 1e-6);
  const middle = median(pairs.map(({ was }) => was[1]));
  const right = (guess) => called.filter((pair) => (guess(pair) > 1) === (pair.was[1] > 1)).length;
  const off = (guess) => median(pairs.map((pair) => Math.abs(guess(pair) / pair.was[1] - 1)));
  const said = (pair) => pair.said, always = () => middle;
  return {
    cases: pairs.length, called: called.length, middle,
    right: right(said), off: off(said), middle_right: right(always), middle_off: off(always),
  };
}

// For other tools on the page.
function errorOf(result) {
  const cases = paysCases(null, result).slice(0, result.raced.length); // by the clock that counts
  const { off, right, cases: all } = score(verdicts(cases, result.protocol));
  return { off, right, cases: all };
}

function scoreSaid(rows) {
  const { cases, called, right, off, middle, middle_right, middle_off } = score(rows);
  const percent = (share) => `${number(100 * share)}%`;
  const silent = cases - called;
  return `The estimate took a side in ${called} of ${cases} gains and had the sign right in ${right} of these`
    + `${silent ? `; in the other ${silent} it says exactly 1, no difference` : ""}. `
    + `In the median it is off by ${percent(off)}. A constant guess, always the median gain of ${ratio(middle)} `
    + `(known only afterwards), is right in ${middle_right} of the same ${called} and off by ${percent(middle_off)}.`;
}

function waysSaid(rows) {
  return WAYS_OF_STACKING.map((way) => {
    const won = rows.filter((row) => row[way].was[0] > 1).length;
    const lost = rows.filter((row) => row[way].was[2] < 1).length;
    return `${way[0].toUpperCase()}${way.slice(1)}: clearly faster than separate in ${won} of ${rows.length} cases, `
      + `clearly slower in ${lost}, neither in ${rows.length - won - lost}.`;
  }).join(" ") + " (Clearly: in three rounds of four.)";
}

function ceilingsSaid(protocol, clock) {
  const { flops_per_s, bytes_per_s, kernel_s } = limitsOf(protocol, clock);
  return `Measured first: one more launch that does nothing takes ${number(1e6 * kernel_s)} µs in a submit with `
    + `others; a large copy moves ${number(bytes_per_s / 1e9)} GB/s; one large product reaches `
    + `${number(flops_per_s / 1e9)} GFLOP/s, the rate of this book's kernel and not the hardware's peak.`;
}

// What was left out, if anything was.
function leftSaid({ planned, left_out = {} }, cases) {
  const reasons = Object.entries(left_out), rest = planned - cases;
  if (!rest) return [];
  const why = reasons.length ? ` The first left out, ${reasons[0][0]}, ${reasons[0][1]}.` : "";
  return [`${cases} of ${planned} cases were measured.${why}`];
}

const byCase = (a, b) => a.name.localeCompare(b.name, "en", { numeric: true });

const CASE = "siblings, pixels · batch";
const NOTE = "All calls of a turn are handed over in one submit. Each follows the last, so what fits into a cache "
  + "stays there, and the three separate convolutions may run side by side: the estimate knows of neither.";

function paysView(record) {
  const cases = counting(record), { clock } = cases[0].parameters, { protocol } = record;
  const rows = verdicts(cases, protocol).sort(byCase), doubt = doubtOf(record);
  const left = leftSaid(protocol, rows.length), shown = { clock, note: NOTE };
  if (doubt) {
    const times = rows.map((row) => [shortly(row.name), ...STAGE.map((way) => number(row.times[way]))]);
    return { ...shown, doubt, said: left, parts: [tall(table("Medians in µs", [CASE, ...STAGE], times), rows)] };
  }
  const time = (row) => (way) => `${number(row.times[way])} (${number(row.estimated_us[way])})`;
  const gain = ({ was, said }) => [`${spread(was, ratio)}${was[1] < 1 ? ", loses" : ""}`, ratio(said)];
  const cells = rows.map((row) => [shortly(row.name), ...STAGE.map(time(row)),
    ...WAYS_OF_STACKING.flatMap((way) => gain(row[way]))]);
  const heads = [CASE, ...STAGE, ...WAYS_OF_STACKING.flatMap((way) => [`gain, ${way}`, "estimate"])];
  const caption = "Medians in µs (with the estimate), and gains over separate (with quartiles)";
  return {
    ...shown, said: [waysSaid(rows), scoreSaid(rows), ceilingsSaid(protocol, clock), ...left],
    parts: [tall(forest(rows), rows, 40), tall(table(caption, heads, cells), rows), ...besideBook(rows)],
  };
}

// A long table or plot is scrolled within its place.
function tall(node, rows, most = 12) {
  if (rows.length > most) node.style.cssText = "max-height: 32rem; overflow: auto";
  return node;
}

// The gains of the same cases in the book's records.
function besideBook(rows) {
  return BOOK.flatMap(({ label, copies, gains: theirs }) => {
    const both = rows.filter(({ name }) => theirs[name]);
    if (!both.length) return [];
    const heads = [CASE, ...WAYS_OF_STACKING.flatMap((way) => [`${way}, here`, `${way}, in the book`])];
    const cells = both.map((row) => [shortly(row.name), ...WAYS_OF_STACKING.flatMap((way) =>
      [spread(row[way].was, ratio), spread(theirs[row.name][way], ratio)])]);
    const told = `The same cases in the book: ${label}. ${copies}`;
    return [element("p", {}, told), tall(table("Gains over separate (with quartiles)", heads, cells), both)];
  });
}

LABS.pays = {
  title: "When stacking pays, on your GPU", run: paysLab, cases: paysCases, view: paysView,
  question: "When is one stacked 1×1 convolution faster than three separate ones, on a reader's own GPU?",
  begin: ({ book }) => { BOOK = book; }, lacks: paysLacks,
};

// What a record in a file lacks of what is shown here, in words; "" if nothing.
function paysLacks({ protocol, cases }) {
  const time = (us) => Number.isFinite(us) && us > 0, whole = (n) => Number.isInteger(n) && n > 0;
  const times = (list) => Array.isArray(list) && list.length > 0 && list.every(time);
  const chain = (line) => times(line?.n) && [line.wall, line.device ?? line.wall].every((series) =>
    Array.isArray(series) && series.length === line.n.length
      && series.every((list) => times(list) && list.length === series[0].length));
  const large = (what, size) => whole(what?.[size]) && times(what.wall) && times(what.device ?? what.wall);
  const { large_product, large_copy, ticks } = protocol ?? {};
  if (!large(large_product, "n") || !large(large_copy, "bytes") || !chain(ticks)) {
    return "its ceilings are not complete";
  }
  const right = ({ parameters: p, samples }) => typeof p.siblings === "string" && ["device", "wall"].includes(p.clock)
    && [p.c_in, p.first, p.second, p.third, p.side, p.batch].every(whole)
    && STAGE.every((way) => samples[way]?.length === samples[STAGE[0]]?.length && samples[way]);
  return cases.every(right) ? "" : "its cases are not complete";
}

// ---- The plot ----

const FOREST = { left: 138, right: 346, top: 72, row: 20 };

// Gains over 1 and below, a row a case: the median with its quartiles, and the estimate as a hollow mark.
function forest(rows) {
  const ends = rows.flatMap((row) => WAYS_OF_STACKING.flatMap((way) => [row[way].said, ...row[way].was]));
  const low = Math.min(0.9, ...ends) / 1.04, high = Math.max(1.1, ...ends) * 1.04;
  const { left, right, top, row } = FOREST, bottom = top + rows.length * row + 4;
  const x = (gain) => left + ((right - left) * log(gain / low)) / log(high / low);
  const label = "Gains of stacked and copied over separate, case by case, with the estimates; the table has the numbers.";
  const drawn = svg("svg", { viewBox: `0 0 360 ${bottom + 4}`, role: "img", "aria-label": label }, ...legend(),
    ...[0.125, 0.25, 0.5, 1, 2, 4, 8].filter((gain) => gain >= low && gain <= high)
      .flatMap((gain) => tick(gain, x, bottom)),
    ...rows.flatMap((one, i) => [words(left - 8, top + (i + 0.5) * row + 4, shortly(one.name), "end"),
      ...WAYS_OF_STACKING.flatMap((way, j) => marks(one[way], j, top + (i + 0.5) * row + (j ? 4 : -4), x))]));
  const attributes = { class: "fs-lab-wide", tabindex: "0", role: "region", "aria-label": "Gains, case by case" };
  return element("div", attributes, drawn);
}

// The line of a gain; that of 1 is heavier.
function tick(gain, x, bottom) {
  const style = gain === 1 ? { style: "stroke: currentColor; stroke-width: 1.5" } : {};
  return [words(x(gain), FOREST.top - 8, gain === 1 ? "1, no gain" : String(gain), "middle"),
    svg("path", { class: "fs-lab-grid", d: `M${x(gain)} ${FOREST.top - 3}V${bottom}`, ...style })];
}

// "3a, 28×28, batch 1" as "3a, 28×28 · 1", in one line.
const shortly = (name) => name.replace(/, batch (\d+)$/, " · $1").replaceAll(" ", "\u00a0");

function mark(j, cx, cy, hollow) {
  const own = { class: `fs-lab-${j}`, ...(hollow && { style: "fill: none; stroke-width: 1.5" }) };
  const r = hollow ? 4 : 3;
  if (!j) return svg("circle", { ...own, cx, cy, r });
  return svg("rect", { ...own, x: cx - r, y: cy - r, width: 2 * r, height: 2 * r });
}

function marks({ said, was: [first, middle, last] }, j, y, x) {
  return [svg("path", { class: `fs-lab-line fs-lab-${j}`, d: `M${x(first)} ${y}H${x(last)}` }),
    mark(j, x(middle), y), mark(j, x(said), y, true)];
}

function legend() {
  const each = WAYS_OF_STACKING.flatMap((way, j) => [mark(j, 10 + 84 * j, 12), words(18 + 84 * j, 16, way, "start")]);
  return [...each, mark(0, 178, 12, true), mark(1, 192, 12, true), words(202, 16, "estimate", "start"),
    words(0, 38, CASE, "start"), words(FOREST.right, 38, "gain over separate", "end")];
}
