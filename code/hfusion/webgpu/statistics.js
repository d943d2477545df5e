// How times are taken, and what is made of them. Pure: the clock is handed in. As in chapter 8.

// Lower quartile, median, upper quartile, as `statistics.quantiles(…, method="inclusive")`.
function quartiles(samples) {
  const sorted = [...samples].sort((a, b) => a - b);
  return [0.25, 0.5, 0.75].map((share) => {
    const place = share * (sorted.length - 1), low = Math.floor(place);
    const high = Math.min(low + 1, sorted.length - 1);
    return sorted[low] + (place - low) * (sorted[high] - sorted[low]);
  });
}

// How many times faster than `base` it is: quartiles of the ratio within a round.
const gains = (base, samples) => quartiles(samples.map((us, round) => base[round] / us));

// a and b of t = a + b n, with the least sum of squares of the relative error, (a + b n) / t - 1.
function fit(ns, times) {
  let [w, wn, wnn, wt, wnt] = [0, 0, 0, 0, 0];
  ns.forEach((n, i) => {
    const weight = 1 / times[i] ** 2;
    w += weight; wn += weight * n; wnn += weight * n * n;
    wt += weight * times[i]; wnt += weight * n * times[i];
  });
  const determinant = w * wnn - wn * wn;
  return [(wt * wnn - wnt * wn) / determinant, (w * wnt - wn * wt) / determinant];
}

// Quartiles of a and of b, from one line a round. samples: for each n, one time a round.
function lines(ns, samples) {
  const fits = samples[0].map((_, round) => fit(ns, samples.map((times) => times[round])));
  return { a: quartiles(fits.map(([a]) => a)), b: quartiles(fits.map(([, b]) => b)) };
}

// How many calls make a turn about `goal` ms long. measure(calls) gives ms, by any clock: one that
// stands still for a while answers 0, and is asked for more.
async function calibrate(measure, goal, most) {
  for (let calls = 1; ;) {
    const ms = await measure(calls), more = Math.ceil(calls * Math.min(goal / Math.max(ms, 1e-9), 10));
    if (ms >= goal / 2 || calls >= most) return Math.min(Math.max(more, 1), most);
    calls = Math.min(Math.max(more, 2 * calls), most);
  }
}

// Turns in rounds: each round gives every arm one turn, and begins with the next arm.
// measure(arm) gives a sample; `more(round, samples)` says whether there is another round.
async function race(arms, measure, more) {
  const samples = Object.fromEntries(arms.map((arm) => [arm, []]));
  for (let round = 0; more(round, samples); round++) {
    for (let i = 0; i < arms.length; i++) {
      const arm = arms[(round + i) % arms.length];
      samples[arm].push(await measure(arm));
    }
  }
  return samples;
}
