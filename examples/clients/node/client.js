// Asks a Nexus server for one prediction by both of its APIs: npm ci && node client.js 127.0.0.1:8001
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import { createRequire } from "node:module";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

const TIMEOUT_MS = 10_000;
const ROW = [5.1, 3.5, 1.4, 0.2];
const address = process.argv[2] ?? "127.0.0.1:8001";

// protobufjs brings google/api/annotations.proto, which nexus/v1 imports.
const protobufjs = dirname(createRequire(import.meta.url).resolve("protobufjs/package.json"));
const protos = fileURLToPath(new URL("../../../proto", import.meta.url));
const definition = protoLoader.loadSync(["nexus/v1/inference.proto", "inference/grpc_service.proto"], {
  includeDirs: [protos, protobufjs],
  keepCase: true,
  longs: Number,
});
const { nexus, inference } = grpc.loadPackageDefinition(definition);

/** One unary call, as a promise. */
function call(client, method, request) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + TIMEOUT_MS;
    client[method](request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

/** nexus.v1: a model and its features in, a prediction out. */
async function predict(client) {
  const answer = await call(client, "Predict", { model_id: "iris", features: ROW });
  console.log(`Predict: prediction ${answer.prediction[0]}, probabilities ${joined(answer.probabilities)}`);
}

/** The Open Inference Protocol: tensors, as little-endian bytes. */
async function modelInfer(client) {
  const raw = Buffer.alloc(4 * ROW.length);
  ROW.forEach((value, index) => raw.writeFloatLE(value, 4 * index));
  const answer = await call(client, "ModelInfer", {
    model_name: "iris",
    inputs: [{ name: "X", datatype: "FP32", shape: [1, ROW.length] }],
    raw_input_contents: [raw],
  });
  // One raw content per output, in the model's order: label (INT64), probabilities (FP32).
  const [label, scores] = answer.raw_output_contents;
  const probabilities = Array.from({ length: scores.length / 4 }, (_, index) => scores.readFloatLE(4 * index));
  console.log(`ModelInfer: label ${label.readBigInt64LE()}, probabilities ${joined(probabilities)}`);
}

function joined(values) {
  return values.map((value) => value.toFixed(4)).join(" ");
}

const credentials = grpc.credentials.createInsecure();
const clients = [new nexus.v1.Inference(address, credentials), new inference.GRPCInferenceService(address, credentials)];
try {
  await predict(clients[0]);
  await modelInfer(clients[1]);
} catch (error) {
  console.error(`client: ${address} answered ${grpc.status[error.code] ?? error.name}: ${error.details ?? error.message}`);
  process.exitCode = 1;
} finally {
  clients.forEach((client) => client.close());
}
