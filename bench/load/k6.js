// Load on a kvmeta server by k6 (https://k6.io), from protos/ alone:
//
//     k6 run bench/load/k6.js                                      lookups, 8 callers, 10 s
//     k6 run -e TARGET=host:7400 -e BATCH=16384 -e PUTS=0.1 --vus 32 --duration 5m bench/load/k6.js
//
// The IDs asked for are those of a scan at the start; a server without entries gets some to begin with. With
// PUTS, that share of the calls puts fresh random IDs. All of it happens in a dataset of its own unless DATASET
// names another; only its own is dropped in the end. k6 turns messages into JSON, base64 and all, so it is k6
// that is busy at large batches: look at latencies and errors, and measure throughput with `make bench-service`.

import { check } from 'k6';
import encoding from 'k6/encoding';
import grpc from 'k6/net/grpc';
import { Counter } from 'k6/metrics';

const TARGET = __ENV.TARGET || '127.0.0.1:7400';
const BATCH = Number(__ENV.BATCH || 4096);
const PUTS = Number(__ENV.PUTS || 0);
const OWN = 'k6-load';
const DATASET = __ENV.DATASET || OWN;
const POOL = 65536; // IDs asked for
const ID_BYTES = 16;
const LOCATION_BYTES = 24;
const SERVICE = 'kvmeta.v1.StoreService';

export const options = { vus: 8, duration: '10s', thresholds: { checks: ['rate==1.0'] } };

const client = new grpc.Client();
client.load(['../../protos'], 'kvmeta/v1/kvmeta.proto');
const looked = new Counter('kvmeta_ids_looked_up');
const put = new Counter('kvmeta_entries_put');
let connected = false; // of this caller
let pool = null;

function invoke(name, request) {
  if (!connected) {
    client.connect(TARGET, { plaintext: true });
    connected = true;
  }
  return client.invoke(`${SERVICE}/${name}`, request, { timeout: '30s' });
}

function must(reply, what) {
  if (!reply || reply.status !== grpc.StatusOK) {
    throw new Error(`${what}: ${reply && reply.error ? reply.error.message : 'no answer'}`);
  }
  return reply.message;
}

function random(bytes) {
  const out = new Uint8Array(bytes);
  for (let i = 0; i < bytes; i++) {
    out[i] = Math.floor(Math.random() * 256);
  }
  return out;
}

function putRandom(rows) {
  const ids = encoding.b64encode(random(rows * ID_BYTES).buffer);
  const locations = encoding.b64encode(random(rows * LOCATION_BYTES).buffer);
  return invoke('Write', {
    dataset: DATASET, operation: 'OPERATION_PUT', ids: { plain: ids }, locations: { plain: locations },
  });
}

// Makes the dataset and returns the IDs to ask for, in base64.
export function setup() {
  if (DATASET === OWN) {
    const made = invoke('CreateDataset', { name: OWN });
    if (made.status !== grpc.StatusOK) { // left over from a run that was cut off
      must(invoke('DropDataset', { name: OWN }), 'DropDataset');
      must(invoke('CreateDataset', { name: OWN }), 'CreateDataset');
    }
    for (let rows = 0; rows < POOL; rows += 4096) {
      must(putRandom(4096), 'Write');
    }
  }
  const pages = [];
  let rows = 0;
  let after = '';
  while (rows < POOL) {
    const page = must(invoke('Scan', { dataset: DATASET, pageRows: 4096, after }), 'Scan');
    const ids = page.ids && page.ids.plain ? page.ids.plain : '';
    if (ids) {
      pages.push(ids);
      rows += encoding.b64decode(ids).byteLength / ID_BYTES;
    }
    if (page.done) {
      break;
    }
    after = page.cursor;
  }
  if (rows === 0) {
    throw new Error(`dataset ${DATASET} has no entries to ask for`);
  }
  return pages;
}

function chosen(pages) {
  if (pool === null) {
    const parts = pages.map((page) => new Uint8Array(encoding.b64decode(page)));
    pool = new Uint8Array(parts.reduce((total, part) => total + part.length, 0));
    let at = 0;
    for (const part of parts) {
      pool.set(part, at);
      at += part.length;
    }
  }
  const ids = new Uint8Array(BATCH * ID_BYTES);
  const rows = pool.length / ID_BYTES;
  for (let i = 0; i < BATCH; i++) {
    const row = Math.floor(Math.random() * rows) * ID_BYTES;
    ids.set(pool.subarray(row, row + ID_BYTES), i * ID_BYTES);
  }
  return encoding.b64encode(ids.buffer);
}

export default function (pages) {
  if (Math.random() < PUTS) {
    const reply = putRandom(BATCH);
    check(reply, { 'put is durable': (r) => r && r.status === grpc.StatusOK });
    put.add(BATCH);
    return;
  }
  const reply = invoke('Lookup', { dataset: DATASET, ids: { plain: chosen(pages) } });
  check(reply, {
    'lookup is answered': (r) => r && r.status === grpc.StatusOK,
    'every ID is found': (r) => {
      const states = new Uint8Array(encoding.b64decode(r.message.states.plain));
      return states.length === BATCH && states.every((state) => state === 1);
    },
  });
  looked.add(BATCH);
}

export function teardown() {
  if (DATASET === OWN) {
    must(invoke('DropDataset', { name: OWN }), 'DropDataset');
  }
}
