// From a model's inputs: what kind of form it needs, and an example row that it will accept.

// Rows that mean something to the demo models; any other model gets numbers that merely fit.
const KNOWN_ROWS = {
  iris: [5.1, 3.5, 1.4, 0.2],
  iris_forest: [5.1, 3.5, 1.4, 0.2],
  digits_cnn: [
    0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0, 0, 3, 15, 2, 0, 11, 8, 0, 0, 4, 12, 0, 0, 8, 8, 0,
    0, 5, 8, 0, 0, 9, 8, 0, 0, 4, 11, 0, 1, 12, 7, 0, 0, 2, 14, 5, 10, 12, 0, 0, 0, 0, 6, 13, 10, 0, 0, 0,
  ].map((grey) => grey / 16),
};

/** "FP32 [-1, 4]". */
export const tensorType = (tensor) => `${tensor.datatype} [${(tensor.shape ?? []).join(", ")}]`;

/** How to ask for a row: "features", "texts" or "inputs". */
export function formKind(inputs) {
  const required = inputs.filter((input) => !input.optional);
  if (required.length !== 1) return "inputs";
  return required[0].datatype === "BYTES" ? "texts" : "features";
}

/** The shape of one example, every open dimension 1. */
const exampleShape = (input) => (input.shape ?? []).map((dimension) => (dimension < 0 ? 1 : dimension));

const sizeOf = (shape) => shape.reduce((product, dimension) => product * dimension, 1);

/** `count` values that this input's datatype holds, every one different where that is possible. */
function exampleValues({ datatype }, count) {
  const make = {
    BYTES: (index) => (index ? `text ${index + 1}` : "hello"),
    BOOL: (index) => index % 2 === 0,
  }[datatype] ?? ((index) => (index + 1) % 100);
  return Array.from({ length: count }, (_, index) => make(index));
}

/** The example for a model's form: a list for "features" and "texts", an object for "inputs". */
export function exampleRow(id, inputs) {
  const kind = formKind(inputs);
  if (kind === "inputs") return Object.fromEntries(inputs.map((input) => [input.name, exampleTensor(input)]));
  const input = inputs.find((one) => !one.optional);
  const count = sizeOf(exampleShape(input));
  const known = KNOWN_ROWS[id];
  if (kind === "features" && known?.length === count) return known;
  if (kind === "texts") return exampleValues(input, count);
  // Zeros are the middle of what a model of scaled features was trained on.
  return input.datatype.startsWith("FP") ? Array(count).fill(0) : exampleValues(input, count).map(Number);
}

function exampleTensor(input) {
  const shape = exampleShape(input);
  return { shape, data: exampleValues(input, sizeOf(shape)) };
}

/** The example as a person edits it: numbers with commas, one text per line, or JSON. */
export function rowText(kind, row) {
  if (kind === "features") return row.join(", ");
  if (kind === "texts") return row.join("\n");
  const tensors = Object.entries(row).map(([name, tensor]) => `  ${JSON.stringify(name)}: ${JSON.stringify(tensor)}`);
  return `{\n${tensors.join(",\n")}\n}`;
}

/** What a person typed, as the value of the request's field. Raises SyntaxError with a sentence for them. */
export function parseRow(kind, text) {
  if (kind === "texts") return text.split("\n");
  if (kind === "inputs") {
    const value = parseJson(text);
    if (value === null || typeof value !== "object" || Array.isArray(value)) {
      throw new SyntaxError("Inputs are a JSON object: {\"name\": {\"shape\": […], \"data\": […]}}");
    }
    return value;
  }
  const parts = text.trim().replace(/^\[|\]$/g, "").split(/[\s,;]+/).filter((part) => part !== "");
  return parts.map((part, index) => {
    const number = Number(part);
    if (!Number.isFinite(number)) throw new SyntaxError(`Feature ${index + 1} is not a number: ${part}`);
    return number;
  });
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch (failure) {
    throw new SyntaxError(`This is not JSON: ${failure.message}`);
  }
}

/**
 * The class that an answer names, and how its probabilities are called: {label, names}. The server's predicted_class
 * counts: it goes by the labels and the threshold of the model's configuration.
 */
export function classes(answer) {
  const probabilities = answer.probabilities ?? [];
  const names = probabilities.map((_, index) => String(index));
  if (answer.predicted_class) return { label: answer.predicted_class, names };
  if (answer.labels?.length) return { label: answer.labels.join(", "), names };
  const values = answer.prediction ?? [];
  if (probabilities.length && values.length !== 1) {
    return { label: String(probabilities.indexOf(Math.max(...probabilities))), names };
  }
  return { label: values.length === 1 ? String(values[0]) : "", names };
}
