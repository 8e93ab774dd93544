// Package idempotency makes retries safe: a request that is sent twice with the
// same Idempotency-Key runs its handler once, and the second gets the first
// response again.
//
// Stand [Require] between authentication, which puts the tenant's org_id into the
// request's context, and the handlers:
//
//	protect := idempotency.Require(store,
//		idempotency.WithExclude("POST /v1/auth/login"),
//	)
//	handler := authenticate(protect(mux))
//
// The store keeps what became of each key: pgstore.Store in PostgreSQL, each
// tenant's records in that tenant's own schema; [MemoryStore] for tests and for a
// single process; or any [Store] of your own, for which package idempotencytest is
// the proof.
//
// # The contract
//
// A record is absent, in progress (leased by one attempt, which a random fencing
// token names) or completed. An expired record counts as absent. Time is the
// store's.
//
//   - GET, HEAD, OPTIONS, TRACE, a method that is not in [WithMethods], and a route
//     of [WithExclude] pass through untouched.
//   - No key: passes through; 400 on a route of [WithRequireKey].
//   - Two key lines, or a key that is empty, over 255 bytes, not printable ASCII,
//     or malformed: 400, before any lookup. The quoted form (an RFC 8941 String, as
//     draft-ietf-httpapi-idempotency-key-header-07 section 2.1 has it) and the bare
//     form are the same key.
//   - A key but no tenant: passes through and is reported; 401 with
//     [WithRequireOrg]. A tenant that the store does not know: 403.
//   - A body over [WithMaxRequestBytes]: 413.
//   - The first time: the handler runs; its response is stored, and then sent.
//   - Again, with the same fingerprint: the stored status, headers and body, byte
//     for byte, and Idempotency-Replayed: true. The handler does not run.
//     [WithReplayCheck] may refuse it, with 403.
//   - Again, with another fingerprint (method, path, query or body): 422.
//   - Again, while the first is in progress: 409 with Retry-After.
//   - In progress, but the lease has lapsed because the process died: the next
//     attempt takes over and runs; the late first one can no longer complete, and
//     its client is told to ask again. With [WithInterrupted] ([Refuse]) 409
//     instead, until the record expires.
//   - The store is down when the key is claimed: 503 with Retry-After, and the
//     handler does not run; with [WithFailOpen] it runs unprotected.
//   - The store is down when the outcome is stored: it is tried again within
//     [WithStoreTimeout]; then the client gets its response all the same, and the
//     lease decides what a retry gets.
//   - The handler panics, or answers with a status that [WithStorable] does not
//     store: the claim is released, and a retry runs the handler. After a take-over
//     the attempts are counted on, because the interrupted one may have had an effect.
//   - A response over [WithMaxResponseBytes], or a hijacked connection: passes
//     through, and a tombstone is stored. A retry gets 409 with the original
//     status; the handler does not run a second time because its response was big.
//   - The client goes away: the outcome is stored all the same, but for a streamed
//     response, which may have been broken off and is kept as a tombstone. A handler
//     that returns without having written anything after its context was cancelled
//     has no outcome; its claim is released. A claim whose client left is undone, and
//     one whose answer was lost is finished or undone, by its token.
//
// A response is held back until its outcome is stored, so what a client has seen
// is what a retry will get, unless the store could not be reached to store it. A
// handler that stops half-way because its context was
// cancelled should not return what it has by then as if it were all: it cannot be
// told apart. A handler that flushes asks for the opposite: its
// response streams from then on, and is recorded as it goes. Informational (1xx)
// responses go out at once. Trailers are passed through and not stored.
//
// # What it does not promise
//
// The claim, the handler's own effects and the stored response are separate steps.
// A process that dies after the effect and before the response is stored leaves an
// effect without a record, and after the lease has lapsed a retry runs the handler
// again; [Attempt] tells it so. A handler whose effects must not happen twice has
// to make them so: by a unique constraint on something that the request carries,
// say, or by handing an idempotency key of its own to the service that it calls.
//
// # For clients
//
// Problems are application/problem+json (RFC 9457); see [Problem] for the members.
// "code" is stable, and "retry" says whether to send the same key again, a new one,
// or none. A browser client of another origin sees the replay header only when it
// is named in Access-Control-Expose-Headers.
//
// Go's own [http.Transport] knows the header as well: it repeats a request that
// carries it by itself when a kept-alive connection breaks before any response.
package idempotency
