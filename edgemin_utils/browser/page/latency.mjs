// Latency in the visitor's browser: models in turn (A B A B ...), so that ratios hold when the machine's speed drifts.

export const WARMUP_ROUNDS = 10;
export const MOST_ROUNDS = 100;
const FEWEST_ROUNDS = 20;
const BUDGET = 2000; // milliseconds after which no round beyond the fewest is begun
const BREATH = 30; // milliseconds of computing after which the page may draw and listen

/**
 * The q-quantile of numbers, by linear interpolation between the two nearest.
 * @param {number[]} values
 * @param {number} q 0..1
 */
export function quantile(values, q) {
  const sorted = [...values].sort((a, b) => a - b);
  const place = (sorted.length - 1) * q;
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (place - below);
}

/** {median, iqr} in the unit of the values, and their number {runs}. */
export function summary(values) {
  return { median: quantile(values, 0.5), iqr: quantile(values, 0.75) - quantile(values, 0.25), runs: values.length };
}

/**
 * Times models in turn, after warm-up rounds.
 * @param {(() => Promise<{milliseconds: number}>)[]} forwards one a model
 * @returns {Promise<{median: number, iqr: number, runs: number}[]>} milliseconds, one entry a model
 */
export async function timeInTurn(forwards) {
  const times = forwards.map(() => []);
  const started = performance.now();
  let listened = started;
  for (let round = -WARMUP_ROUNDS; round < MOST_ROUNDS; round += 1) {
    if (round >= FEWEST_ROUNDS && performance.now() - started > BUDGET * forwards.length) break;
    for (const [index, forward] of forwards.entries()) {
      const { milliseconds } = await forward();
      if (round >= 0) times[index].push(milliseconds);
    }
    if (performance.now() - listened > BREATH) {
      await new Promise((resume) => { setTimeout(resume); });
      listened = performance.now();
    }
  }
  return times.map(summary);
}

/** A row of exactly `length` tokens: those of `encoding`, over and over. Time depends on how many there are alone. */
export function ofLength({ ids, types }, length) {
  const repeated = (values) => Array.from({ length }, (_, index) => values[index % values.length]);
  return { ids: repeated(ids), types: repeated(types) };
}
