// What a lab has measured, in the form of `records/schema.json`, and back. Pure.

// Each kind of lab that this page carries: its title and question, how to run it, the cases of its
// record, and how they are shown; also, if need be, what it does with its setup, `begin`, and what a
// record of it lacks.
const LABS = {};

const today = () => new Date(Date.now() - 60000 * new Date().getTimezoneOffset()).toISOString().slice(0, 10);

function caseOf(parameters, samples, calls, launches) {
  return { parameters, samples, unit: "us", calls, launches, faults: {}, skipped: {}, events: [] };
}

const by = (clock, times) => times.map((sample) => rounded(sample[clock]));
const all = (arms, pick) => Object.fromEntries(arms.map((arm) => [arm, pick(arm)]));

// A case for each clock.
const ladderCases = (choice, { samples, calls, launches }) => clocks(samples).map((clock) =>
  caseOf({ module: choice.module, batch: choice.batch, clock },
    all(RUNGS, (rung) => by(clock, samples[rung])), calls, launches));

// A case for each clock and n.
const launchesCases = (choice, { samples, calls, launches }) => clocks(samples).flatMap((clock) =>
  choice.ns.map((n) => caseOf({ n, clock },
    all(WAYS, (way) => by(clock, samples[`${way} ${n}`])), all(WAYS, (way) => calls[`${way} ${n}`]),
    all(WAYS, (way) => launches[`${way} ${n}`]))));

function recordOf(kind, choice, result, sources) {
  const large = result.large && Object.fromEntries(clocks({ large: result.large.samples })
    .map((clock) => [clock, result.large.samples.map((sample) => rounded(sample[clock]))]));
  return {
    schema: 1, experiment: `webgpu_${kind}`, question: LABS[kind].question, machine: result.machine,
    date: today(), commit: "unknown", sources, counted: "dispatches",
    protocol: {
      order: "arms take turns, and each round begins with the next arm",
      turn: "one call that is not timed by the GPU's clock, then the case's calls in a row",
      rounds: Object.values(result.samples)[0].length,
      warm_up: result.warmUp, turn_us: 1000 * PACE[choice.pace].turn,
      inputs: "small whole numbers from a seed, the same for all arms",
      checked: "each arm against float64, every entry, before any timing",
      entries: result.entries, differ: result.differ,
      ...(large && { large_product: { n: result.large.n, calls: result.large.calls, ...large } }),
      ...result.protocol,
    },
    missing: {}, cases: LABS[kind].cases(choice, result),
  };
}

// As Python's json.dumps(…, sort_keys=True) writes it, so that `records.digest` finds the same.
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(", ")}]`;
  if (value === null || typeof value !== "object") {
    const escaped = (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
    return JSON.stringify(value).replace(/[^ -~]/g, escaped);
  }
  const pairs = Object.keys(value).sort().map((key) => `${canonical(key)}: ${canonical(value[key])}`);
  return `{${pairs.join(", ")}}`;
}

// SHA-256 of a record, less its own digest. Pages that may use WebGPU may use this, too.
async function digestOf({ digest: _, ...content }) {
  const bytes = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(canonical(content)));
  return [...new Uint8Array(bytes)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// A record from a file's text. Throws what is wrong with it, in words.
async function parsed(text) {
  let record;
  try {
    record = JSON.parse(text);
  } catch {
    throw new Error("it is not JSON");
  }
  const known = Object.keys(LABS).find((kind) => record?.experiment === `webgpu_${kind}`);
  if (record?.schema !== 1 || !known) throw new Error("it is not a record that a lab of this book has written");
  if (record.machine?.kind !== "webgpu" || typeof record.date !== "string") {
    throw new Error("it does not say where it comes from");
  }
  const time = (us) => Number.isFinite(us) && us > 0;
  const taken = (times) => Array.isArray(times) && times.length && times.every(time);
  const right = ({ parameters, samples, launches }) => parameters && launches
    && Object.values(samples ?? {}).length && Object.values(samples).every(taken);
  if (!Array.isArray(record.cases) || !record.cases.length || !record.cases.every(right)) {
    throw new Error("its cases are not complete");
  }
  const lacks = LABS[known].lacks?.(record);
  if (lacks) throw new Error(lacks);
  if (record.digest !== await digestOf(record)) {
    throw new Error("it was edited or damaged: its digest does not fit");
  }
  return { kind: known, record };
}

// The cases by the clock that counts: the GPU's own, if it has one.
function counting(record) {
  const own = record.cases.filter(({ parameters }) => parameters.clock === "device");
  return own.length ? own : record.cases;
}

// Additions and multiplications a second of the large product, in GFLOP/s; null if it is not there.
function rateOf({ protocol, cases }, clock) {
  const large = protocol?.large_product;
  if (!large?.[clock]) return null;
  return (2 * large.n ** 3) / quartiles(large[clock])[1] / 1000;
}
