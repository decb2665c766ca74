// A client of kvmeta in another language, written from docs/protocol.md alone: the test of that page.
//
//     node client.mjs HOST:PORT [PROTOS]
//
// It writes, looks up, scans and makes a few calls fail, and prints what it saw as one JSON object.
// tests/system/test_node_client.py compares that with what the Python SDK sees. PROTOS is the folder of the proto
// files, by default that of this repository.

import { createHash, randomUUID } from "node:crypto";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const ID_BYTES = 16;
const LOCATION_BYTES = 24;
const VERSION_BYTES = 8;
const DEADLINE_MS = 30_000;
const ROWS = 1000;
const ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo";

// Columns

function packedIds(ids) {
  return { plain: Buffer.concat(ids) };
}

function packedLocations(locations) {
  const column = Buffer.alloc(locations.length * LOCATION_BYTES);
  locations.forEach((location, row) => {
    const start = row * LOCATION_BYTES;
    column.writeUInt32LE(location.volume, start);
    column.writeUInt32LE(location.length, start + 4);
    column.writeBigUInt64LE(location.offset, start + 8);
    column.writeUInt32LE(location.checksum, start + 16);
    column.writeUInt32LE(location.tag, start + 20);
  });
  return { plain: column };
}

function values(packed, size) {
  const column = packed?.plain ?? Buffer.alloc(0);
  if (packed?.form === "lz4" || column.length % size) throw new Error("not a plain column of this size");
  return Array.from({ length: column.length / size }, (_, row) => column.subarray(row * size, (row + 1) * size));
}

const codes = (packed) => values(packed, 1).map((value) => value[0]);
const hexIds = (packed) => values(packed, ID_BYTES).map((value) => value.toString("hex"));
const versions = (packed) => values(packed, VERSION_BYTES).map((value) => value.readBigUInt64LE());
const locations = (packed) =>
  values(packed, LOCATION_BYTES).map((value) => ({
    volume: value.readUInt32LE(0),
    length: value.readUInt32LE(4),
    offset: value.readBigUInt64LE(8),
    checksum: value.readUInt32LE(16),
    tag: value.readUInt32LE(20),
  }));

// Errors: google.rpc.Status, read by hand

function* fields(message) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = message[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < message.length) {
    const tag = varint();
    const number = Math.floor(tag / 8);
    if (tag % 8 === 0) yield [number, varint()];
    else if (tag % 8 === 2) {
      const end = varint() + at;
      yield [number, message.subarray(at, end)];
      at = end;
    } else throw new Error(`wire type ${tag % 8} in a status`);
  }
}

function errorInfo(error) {
  for (const status of error.metadata?.get("grpc-status-details-bin") ?? []) {
    for (const [number, detail] of fields(status)) {
      if (number !== 3) continue;
      const any = Object.fromEntries(fields(detail));
      if (any[1].toString() !== ERROR_INFO) continue;
      const info = { reason: "", domain: "", metadata: {} };
      for (const [field, value] of fields(any[2])) {
        if (field === 1) info.reason = value.toString();
        if (field === 2) info.domain = value.toString();
        if (field === 3) {
          const pair = Object.fromEntries(fields(value));
          info.metadata[pair[1].toString()] = (pair[2] ?? "").toString();
        }
      }
      if (info.domain === "kvmeta") return info;
    }
  }
  return null;
}

// Calls

function connect(address, protos) {
  const definition = protoLoader.loadSync("kvmeta/v1/kvmeta.proto", {
    includeDirs: [protos],
    keepCase: true,
    longs: String,
    enums: String,
    defaults: true,
    oneofs: true,
  });
  const { StoreService } = grpc.loadPackageDefinition(definition).kvmeta.v1;
  return new StoreService(address, grpc.credentials.createInsecure(), {
    "grpc.max_receive_message_length": 64 << 20,
    "grpc.enable_retries": 0,
  });
}

function caller(client) {
  return (method, request) =>
    promisify(client[method].bind(client))(request, { deadline: Date.now() + DEADLINE_MS });
}

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return { status: grpc.status[error.code], message: error.details, info: errorInfo(error) };
  }
  throw new Error("a call that should fail did not");
}

async function scan(call, options) {
  const seen = { pages: 0, ids: [], locations: [], versions: [] };
  for (let after = Buffer.alloc(0), done = false; !done; seen.pages++) {
    const page = await call("Scan", { ...options, after });
    seen.ids.push(...hexIds(page.ids));
    seen.locations.push(...locations(page.locations));
    seen.versions.push(...versions(page.versions));
    after = page.cursor;
    done = page.done;
  }
  return seen;
}

// The program

const fileId = (name) => createHash("sha256").update(name).digest().subarray(0, ID_BYTES);
const locationOf = (row) => ({
  volume: 1,
  length: row + 1,
  offset: (1n << 40n) + BigInt(row) * 4096n,
  checksum: (row * 2654435761) % 2 ** 32,
  tag: row % 10,
});

async function main(address, protos) {
  const client = connect(address, protos);
  const call = caller(client);
  const rows = [...Array(ROWS).keys()];
  const ids = rows.map((row) => fileId(`node/${row}`));
  const absent = fileId("node/absent");
  const seen = { describe: await call("Describe", {}) };
  seen.describe.store_id = seen.describe.store_id.toString("hex");

  const put = { operation: "OPERATION_PUT", ids: packedIds(ids), locations: packedLocations(rows.map(locationOf)) };
  await call("Write", put);
  const found = await call("Lookup", { ids: packedIds([...ids, absent]) });
  seen.lookup = {
    states: codes(found.states),
    locations: locations(found.locations),
    versions: versions(found.versions),
  };

  const two = packedIds([ids[0], absent]);
  const insert = { operation: "OPERATION_INSERT", ids: two, locations: packedLocations([7, 8].map(locationOf)) };
  const inserted = await call("Write", insert);
  seen.insert = {
    outcomes: codes(inserted.outcomes),
    locations: locations(inserted.locations),
    versions: versions(inserted.versions),
  };
  const moved = await call("Write", {
    operation: "OPERATION_RELOCATE",
    ids: two,
    locations: packedLocations([9, 9].map(locationOf)),
    versions: { plain: found.versions.plain.subarray(0, 2 * VERSION_BYTES).fill(1, VERSION_BYTES) },
  });
  seen.relocate = { outcomes: codes(moved.outcomes) };
  await call("Write", { operation: "OPERATION_DELETE", ids: packedIds([absent]) });

  seen.scan = await scan(call, { page_rows: 300 });
  seen.tagged = await scan(call, { tag: 3 });
  const shards = [0, 1, 2].map((shard) => scan(call, { shard_index: shard, shard_count: 3 }));
  seen.shards = (await Promise.all(shards)).map((shard) => shard.ids);

  const entry = { key: "train/0001.jpg" };
  await call("Put", { entry, location: { ...locationOf(5), offset: "1099511648256" } });
  seen.get = await call("Get", { entry });
  seen.get_by_id = await call("Get", { entry: { id: Buffer.from("06565a61c419c31b2ea53c1f120f5479", "hex") } });
  await call("Put", { entry: { key: "gone" }, location: {} });
  await call("Delete", { entry: { key: "gone" } });
  seen.gone = await call("Get", { entry: { key: "gone" } });

  const volume = { uri: "file:///data/node.tar", size_bytes: "9007199254740993" };
  seen.volume = (await call("AddVolume", volume)).volume;
  const job = { kind: "JOB_KIND_VERIFY", request_id: randomUUID() };
  seen.job = (await call("StartJob", job)).job;
  const again = (await call("StartJob", job)).job;
  while (seen.job.state === "JOB_STATE_RUNNING") {
    seen.job = (await call("GetJob", { id: again.id, wait_s: 2 })).job;
  }

  seen.failures = {
    dataset: await failure(call("Lookup", { dataset: "nowhere", ids: packedIds(ids) })),
    column: await failure(call("Lookup", { ids: { plain: Buffer.alloc(17) } })),
    operation: await failure(call("Write", { ids: packedIds(ids) })),
    rows: await failure(call("Lookup", { ids: { plain: Buffer.alloc(65_537 * ID_BYTES) } })),
    message: await failure(call("Lookup", { ids: { plain: Buffer.alloc(5 << 20) } })),
  };
  client.close();
  return seen;
}

const [address, protos = fileURLToPath(new URL("../../protos", import.meta.url))] = process.argv.slice(2);
const asText = (_, value) => (typeof value === "bigint" ? value.toString() : value);
console.log(JSON.stringify(await main(address, protos), asText));
