// What a bundle says of itself, and numbers, in words.

// A number and its unit stay on one line: the space between them is a no-break one.
export const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
export const seconds = (time) => `${(time / 1000).toFixed(2)}\u00a0s`;
export const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 1)}\u00a0MB`;
export const milliseconds = (time) => `${time.toFixed(time < 10 ? 2 : 1)}\u00a0ms`;

/** Title -> sentence, of what bundle.json says was measured and where the model came from; undefined where it does not. */
export function manifestFacts({ measured = {}, provenance = {} }) {
  return {
    "Accuracy when made": accuracy(measured),
    "Latency when made": latency(measured),
    "Where it came from": origin(provenance),
    "Rows it was judged on": provenance.rows,
  };
}

function accuracy({ accuracy: splits = {} }) {
  return Object.entries(splits).map(([split, { rows, bundle, pytorch, agreement }]) =>
    `${percent(bundle)} of ${rows.toLocaleString("en")} rows of ${split} (the PyTorch model ${percent(pytorch)}; ` +
    `${percent(agreement)} answered alike)`).join("; ") || undefined;
}

function latency({ latency: rows = [], processor }) {
  const one = (row) => `${milliseconds(row.median_ms)} (IQR ${milliseconds(row.iqr_ms)}, ${row.runs} runs)`;
  const bundle = rows.filter((row) => row.model === "bundle").map((row) => `${row.input} ${one(row)}`);
  if (!bundle.length) return undefined;
  return `${bundle.join(", ")}, outside a browser on one thread${processor ? ` of ${processor}` : ""}`;
}

function origin({ source, steps = [], edgemin, revision }) {
  const made = [edgemin && `EdgeMIN ${edgemin}`, revision && `revision ${revision.slice(0, 10)}`].filter(Boolean);
  return [source, steps.length && steps.join(", then "), made.length && `bundled by ${made.join(", ")}`]
    .filter(Boolean).join("; ") || undefined;
}
