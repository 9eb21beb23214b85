// The authorization server of the tests: oidc-provider as it is published, with a gate before its token endpoint that
// keeps a log and makes faults. People are played by a page that logs in and consents at once.
//
// Prints one line, {"issuer": "http://127.0.0.1:PORT", "port": PORT}, when it listens, and ends when its standard input
// does. ACCESS_TOKEN_TTL is the life of an access token in seconds; ISSUER is what the world knows it as, if not by its
// own address.
//
//   GET    /test/log     what the token endpoint was asked, oldest first (see `gate`)
//   GET    /test/issued  every token handed out: {"access_tokens": [..], "refresh_tokens": [..]}
//   PUT    /test/client  registers a client that signs: {"client_id": .., "algorithm": .., "key": public, PEM}
//   PUT    /test/fault   {"kind": "delay" | "hold" | "drop" | "answer", "after": bool, ..} (see `suffer`)
//   DELETE /test/fault   ends the fault and lets go what it holds

import { createHash, createPublicKey, generateKeyPairSync, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';

import { Provider } from 'oidc-provider';

console.info = console.warn = () => {}; // remarks on what is for development only; all of this is

// Its own memory store forgets the oldest of 1,000 records.
const records = new Map();
class Memory {
  constructor(model) {
    this.model = model;
  }
  key(id) {
    return `${this.model}:${id}`;
  }
  async upsert(id, payload) {
    records.set(this.key(id), payload);
  }
  async find(id) {
    return records.get(this.key(id));
  }
  async findByUserCode(code) {
    return [...records.values()].find((record) => record.kind === this.model && record.userCode === code);
  }
  async findByUid(uid) {
    return [...records.values()].find((record) => record.kind === this.model && record.uid === uid);
  }
  async consume(id) {
    records.get(this.key(id)).consumed = Math.floor(Date.now() / 1000);
  }
  async destroy(id) {
    records.delete(this.key(id));
  }
  async revokeByGrantId(grantId) {
    for (const [key, record] of records) if (record.grantId === grantId) records.delete(key);
  }
}

const common = {
  application_type: 'native',
  redirect_uris: ['http://127.0.0.1/callback'],
  grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
  id_token_signed_response_alg: 'ES256',
};
const clients = [
  { ...common, client_id: 'public', token_endpoint_auth_method: 'none' },
  // Characters that RFC 6749 section 2.3.1 has encoded before they go into the header.
  { ...common, client_id: 'basic', client_secret: 'canary-cs-basic:%+&=/', token_endpoint_auth_method: 'client_secret_basic' },
  { ...common, client_id: 'post', client_secret: 'canary-cs-post:%+&=/', token_endpoint_auth_method: 'client_secret_post' },
];

const log = [];
const issued = { access_tokens: [], refresh_tokens: [] };
let fault;
let held = [];

function takeFault() {
  const current = fault;
  if (fault?.times !== undefined && (fault.times -= 1) <= 0) fault = undefined;
  return current;
}

// Carries out a fault: `delay` takes `ms`; `hold` lasts until the fault is deleted; `drop` closes the connection;
// `answer` sends `status`, `retry_after`, and `error` as RFC 6749 has it or, without one, no readable body. With
// `times` it strikes that many requests. True when there is nothing left to do for the request.
async function suffer(current, ctx) {
  const gone = new Promise((resolve) => ctx.res.once('close', () => resolve(true)));
  if (current.kind === 'delay') return Promise.race([sleep(current.ms, false), gone]);
  if (current.kind === 'hold') return Promise.race([new Promise((resolve) => held.push(() => resolve(false))), gone]);
  if (current.kind === 'drop') {
    ctx.respond = false;
    ctx.req.socket.destroy();
    return true;
  }
  ctx.status = current.status;
  ctx.body = current.error ? { error: current.error } : '<html>no</html>';
  if (current.retry_after !== undefined) ctx.set('Retry-After', String(current.retry_after));
  return true;
}

async function gate(ctx, next) {
  if (ctx.path !== '/token' || ctx.method !== 'POST') return next();
  const chunks = [];
  for await (const chunk of ctx.req) chunks.push(chunk);
  const form = Object.fromEntries(new URLSearchParams(Buffer.concat(chunks).toString()));
  ctx.req.body = form;
  const fingerprint = form.refresh_token && createHash('sha256').update(form.refresh_token).digest('hex');
  const earlier = log.filter((entry) => fingerprint && entry.fingerprint === fingerprint);
  const entry = {
    time: Date.now(), // of arrival, milliseconds since 1970
    grant_type: form.grant_type ?? null,
    fingerprint: fingerprint ?? null, // of the refresh token that was presented
    presented_before: earlier.length, // how often, whatever came of it
    spent_before: earlier.some((other) => other.committed), // whether one of these had spent it
    committed: false, // whether the provider issued tokens for it
    status: null, // what was answered; null as long as nothing was
    error: null,
  };
  log.push(entry);

  const current = takeFault();
  if (current && !current.after && (await suffer(current, ctx))) return note(entry, ctx);
  await next();
  if (ctx.status === 200) {
    entry.committed = true;
    issued.access_tokens.push(ctx.body.access_token);
    if (ctx.body.refresh_token) issued.refresh_tokens.push(ctx.body.refresh_token);
  }
  if (current?.after) await suffer(current, ctx);
  note(entry, ctx);
}

function note(entry, ctx) {
  if (ctx.res.destroyed || ctx.respond === false) return;
  entry.status = ctx.status;
  entry.error = ctx.body?.error ?? null;
}

async function interact(request, response) {
  const { params, prompt } = await provider.interactionDetails(request, response);
  if (prompt.name === 'login') {
    return provider.interactionFinished(request, response, { login: { accountId: 'someone' } });
  }
  const grant = new provider.Grant({ accountId: 'someone', clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  for (const resource of [params.resource ?? []].flat()) grant.addResourceScope(resource, 'read');
  return provider.interactionFinished(request, response, { consent: { grantId: await grant.save() } });
}

function register({ client_id, algorithm, key }) {
  records.set(`Client:${client_id}`, {
    ...common,
    client_id,
    token_endpoint_auth_method: 'private_key_jwt',
    token_endpoint_auth_signing_alg: algorithm,
    jwks: { keys: [{ ...createPublicKey(key).export({ format: 'jwk' }), kid: client_id, use: 'sig' }] },
  });
}

async function control(request, response) {
  const answer = (body) => response.setHeader('Content-Type', 'application/json').end(JSON.stringify(body));
  if (request.url === '/test/log') return answer(log);
  if (request.url === '/test/issued') return answer(issued);
  if (request.method === 'PUT') {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = JSON.parse(Buffer.concat(chunks));
    if (request.url === '/test/client') register(body);
    else fault = body;
  } else {
    fault = undefined;
    for (const release of held.splice(0)) release();
  }
  return answer({});
}

const server = createServer((request, response) => {
  const failed = (error) => {
    console.error(error);
    response.writeHead(500).end();
  };
  if (request.url.startsWith('/test/')) control(request, response).catch(failed);
  else if (request.url.startsWith('/interaction/')) interact(request, response).catch(failed);
  else application(request, response);
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const { port } = server.address();
const issuer = process.env.ISSUER ?? `http://127.0.0.1:${port}`;

const life = 86400;
const api = { scope: 'read', accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } } };
const provider = new Provider(issuer, {
  adapter: Memory,
  clients,
  scopes: ['openid', 'offline_access'],
  pkce: { required: () => true },
  rotateRefreshToken: () => true,
  findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
  features: {
    devInteractions: { enabled: false },
    deviceFlow: { enabled: true },
    revocation: { enabled: true },
    // Whatever API is asked for is there, and its tokens are JWTs.
    resourceIndicators: { enabled: true, getResourceServerInfo: (ctx, audience) => ({ audience, ...api }) },
  },
  enabledJWA: { clientAuthSigningAlgValues: ['RS256', 'PS256', 'ES256', 'ES384', 'EdDSA'] },
  jwks: { keys: [generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'jwk' })] },
  cookies: { keys: [randomBytes(32).toString('hex')] },
  ttl: {
    AccessToken: Number(process.env.ACCESS_TOKEN_TTL),
    AuthorizationCode: 60,
    DeviceCode: 600,
    Grant: life,
    IdToken: life,
    Interaction: life,
    RefreshToken: life,
    Session: life,
  },
});
provider.use(gate);
provider.on('server_error', (ctx, error) => console.error(error));
const application = provider.callback();

console.log(JSON.stringify({ issuer, port }));
process.stdin.resume().on('end', () => process.exit());
