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
    "Where it came from": origin(provenance),
    "Rows it was judged on": provenance.rows,
  };
}

function accuracy({ accuracy: splits = {} }) {
  return Object.entries(splits).map(([split, { rows, bundle, pytorch, agreement }]) =>
    `${percent(bundle)} of ${rows.toLocaleString("en")} rows of ${split} (the PyTorch model ${percent(pytorch)}; ` +
    `${percent(agreement)} answered alike)`).join("; ") || undefined;
}

function origin({ source, edgemin, revision }) {
  const made = [edgemin && `EdgeMIN ${edgemin}`, revision && `revision ${revision.slice(0, 10)}`].filter(Boolean);
  return [source, made.length && `bundled by ${made.join(", ")}`].filter(Boolean).join("; ") || undefined;
}
