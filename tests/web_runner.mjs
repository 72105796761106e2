// Runs a graph in onnxruntime-web (WebAssembly): node web_runner.mjs PACKAGE_FOLDER GRAPH REQUESTS.json
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, graph, requests] = process.argv.slice(2);
const ort = createRequire(`${folder}/`)("onnxruntime-web");
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(graph), { executionProviders: ["wasm"] });
const answers = [];
for (const { dims, data } of JSON.parse(readFileSync(requests))) {
  const history = new ort.Tensor("int64", BigInt64Array.from(data.map(BigInt)), dims);
  const { item_index, score } = await session.run({ history });
  answers.push({ item_index: Array.from(item_index.data, Number), score: Array.from(score.data) });
}
console.log(JSON.stringify(answers));
