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
// This is what a request gets. The last column names the test that proves it, over
// MemoryStore, over pgstore and over any store that runs the suites of package
// idempotencytest.
//
// Passing through:
//
//	GET, HEAD, OPTIONS or TRACE                  passes through untouched                     SafeMethodsPassThrough
//	a method that WithMethods does not name      passes through untouched                     OtherMethodsPassThrough
//	a route of WithExclude                       passes through untouched                     ExcludedRoutesPassThrough
//	no key                                       passes through untouched                     NoKeyPassesThrough
//	no key, on a route of WithRequireKey         400                                          RequiredKey
//	a key, but no tenant in the context          passes through, and is reported              NoOrgPassesThrough
//	the same, with WithRequireOrg                401                                          RequiredOrg
//	a tenant that the store does not know        403                                          UnknownTenant
//	a tenant that is not served at present       403 of its own                               SuspendedTenant
//
// Keys and requests:
//
//	two key lines; a key that is empty, over     400, before any lookup                       InvalidKeys
//	255 bytes, not printable ASCII, or
//	malformed
//	the quoted form of a key (RFC 8941) and its  are one key                                  QuotedAndBareAreOneKey
//	bare form
//	one key of two tenants                       two keys                                     TenantsShareNoKeys
//	one key of two scopes (WithScope)            two keys                                     ScopesShareNoKeys
//	a body over WithMaxRequestBytes              413                                          RequestTooLarge
//	a body within it                             reaches the handler whole                    RequestBodyReachesHandler
//	a fingerprint of any length                  is compared whole                            LongFingerprint
//	under a Require within another               the outer one alone takes part               NestedRequireIsOne
//	with another key, made by a handler          is a request of its own                      NestedRequireOfAnotherKey
//
// The first time, and again:
//
//	the first                                    the handler runs; its response is stored,    NothingSentBeforeStored
//	                                             then sent
//	again, same fingerprint                      status, headers and body as stored, and      Replay
//	                                             Idempotency-Replayed: true
//	again, where the handler wrote nothing       its status and headers                       ReplayOfNothing
//	again, with WithReplayHeader                 the header by that name                      ReplayHeaderRenamed
//	again, refused by WithReplayCheck            403, or the function's Problem               ReplayCheck
//	again, other fingerprint                     422                                          Mismatch,
//	                                                                                          MismatchInFlight
//	again, expired                               the handler runs                             ExpiredRecordRunsAgain
//	again, in progress                           409 with Retry-After                         InFlight,
//	                                                                                          ConcurrentDuplicates
//	again, in progress, with WithWait            waits, then replays                          WaitReplays,
//	                                                                                          WaitOfAnyStore
//	waited as long as it may                     409 with Retry-After                         WaitTimesOut
//	waited for an attempt that was released      the handler runs, for one of those who wait  WaitRunsAfterRelease
//	waited for an attempt whose process died     takes over                                   WaitTakesOver
//	waits, and its client leaves                 stops waiting                                WaiterLeaves
//	waits, and the store goes down               503; WithFailOpen or not                     WaitStoreDown
//
// Leases and attempts:
//
//	a handler longer than its lease              the lease is extended, until the outcome is  LeaseIsExtended,
//	                                             stored                                       LeaseKeptToTheEnd
//	in progress, lease lapsed                    takes over, as the next attempt; the late    TakeOver
//	                                             one can store nothing, and its client gets
//	                                             409
//	the same, with WithInterrupted(Refuse)       409 until the record expires                 InterruptedRefused
//	a second attempt that comes to nothing       attempts are counted on                      TakeOverThatFails
//	a lease that is lost                         the handler's context is cancelled, and the  LostLeaseCancelsHandler
//	                                             cause says why
//	lost, found out at the release               is reported                                  LeaseLostAtRelease
//
// No outcome:
//
//	the handler panics or ends its goroutine     the claim is released, the panic goes on     PanicReleases
//	a status that is not storable                is sent and forgotten; a retry runs          StatusesThatAreNotStored
//	retries that meet a release                  run or get 409, and no 500                   RetriesMeetReleases
//
// Recording:
//
//	1xx responses                                go out at once and decide nothing            InformationalResponses
//	a second WriteHeader, headers set after the  have no effect                               SecondWriteHeaderIsIgnored
//	first
//	io.Copy, io.ReaderFrom                       are recorded                                 CopyIsRecorded,
//	                                                                                          ReaderFromIsNotReached
//	http.ResponseController                      works: Flush, deadlines                      ResponseController
//	Flush                                        streams from then on, and goes on recording  StreamedResponse,
//	                                                                                          FlushBeforeBody
//	a response at WithMaxResponseBytes           is kept                                      ResponseAtTheBound
//	one over it                                  passes through; a retry gets 409 with the    LargeResponse
//	                                             original status
//	a stream over it                             the same                                     StreamedPastTheBound
//	a hijacked connection                        the same                                     HijackedResponse
//	headers of outer middleware                  are not stored, doubled or lost              OuterHeadersAreNotStored
//	Set-Cookie, credentials, hop-by-hop          are not stored; WithHeaders replaces the     SecretHeadersAreNotStored
//	headers, Date                                rule
//	a Content-Length that the handler declares   is that of what it wrote                     DeclaredLength
//	trailers                                     pass through and are not stored              Trailers
//	a body that the handler compresses           is replayed as it is                         GzipInside
//	a body that outer middleware compresses      is stored plain, and compressed each time    GzipOutside
//	a handler that writes after it returned      gets an error and changes nothing            WriteAfterReturn,
//	                                                                                          LateHeaders
//
// Clients that leave:
//
//	during the claim                             the claim is undone; the handler does not    ClientLeavesDuringClaim,
//	                                             run, unless it is detached                   GoneBeforeTheHandler
//	while the handler runs                       the outcome is stored all the same           ClientLeavesMidHandler
//	the same, with WithDetachedHandler           and the handler's context stays alive        DetachedHandler
//	the same, and the handler returns without a  is no outcome: released                      SilentReturnAfterCancel
//	response
//	in the middle of a stream                    half a stream is not replayed: 409 as for    StreamBrokenOff
//	                                             one not kept
//
// A store in trouble:
//
//	down when the key is claimed                 503 with Retry-After; the handler does not   StoreDownAtClaim,
//	                                             run                                          PlainStoreDown
//	the same, with WithFailOpen                  runs unprotected, and is reported            FailOpen
//	the claim's answer is lost                   the claim is finished or undone, by its      ClaimAnswerLost
//	                                             token
//	reached, but it refuses the claim            503, WithFailOpen or not                     StoreRefuses
//	down when the outcome is stored              tried again within WithStoreTimeout          StoreBackForCompletion,
//	                                                                                          HungCompletion
//	down for longer                              the client gets its response; the lease      StoreDownAtCompletion
//	                                             decides what a retry gets
//	down when a claim is released                the response goes out, and it is reported    StoreDownAtRelease
//
// Answers and reports:
//
//	an answer of the middleware's own            application/problem+json (RFC 9457)          ProblemDetails
//	the same, with WithErrorHandler              what the function writes                     ErrorHandler
//	each request with a key                      one Event, without the key                   Events
//
// A response is held back until its outcome is stored, so what a client has seen
// is what a retry will get, unless the store could not be reached to store it. A
// handler that stops half-way because its context was
// cancelled should not return what it has by then as if it were all: it cannot be
// told apart. A handler that flushes asks for the opposite: its
// response streams from then on, and is recorded as it goes. Informational (1xx)
// responses go out at once. Trailers are passed through and not stored.
//
// The request's body has been read by then, and ends with its handler, as net/http's does: a
// goroutine that is left behind and reads on gets [net/http.ErrBodyReadAfterClose].
//
// # Transactions
//
// A store may run each handler in a transaction of its own, as pgstore's does when it
// is asked to (pgstore.Store.Transactional). What the handler writes in it and the
// response are then committed together, and only after that the response is sent.
// A status that is not storable and a panic roll both back; a serialization failure
// or a deadlock runs the handler again. What cannot be committed is answered with 503
// ([ErrNotCommitted]): nothing has happened, or a retry will find out. Such a handler
// cannot stream ([ErrNoStreaming]), and has no lease to lose.
//
// # Steps
//
// A handler that calls the outside world does it in a [Step], whose result is kept and
// handed to any later attempt, and gives the service that it calls a [ChildKey], which is
// the same in every attempt:
//
//	charge, err := idempotency.Step(ctx, "charge", func(ctx context.Context) (Charge, error) {
//		key, err := idempotency.ChildKey(ctx, "charge")
//		...
//		return bank.Charge(ctx, key, amount)
//	})
//
// How often an effect happens for one key, whatever is killed when:
//
//	effect                                      with leases                       in a transaction
//	the handler's writes through pgstore.Tx     -                                 exactly once
//	its other writes to a database              at least once                     at least once
//	a step whose result is stored               never again                       never again, through rollbacks
//	                                                                              and reruns
//	a step, until then                          at least once                     at least once
//	a call with a ChildKey                      exactly once, as long as the      the same
//	                                            other side remembers the key
//	a call without                              at least once                     at least once, and for each rerun
//
// With [WithInterrupted] ([Refuse]) what is at least once with leases is at most once for
// an attempt that was interrupted. Effects outside the database cannot be made exactly
// once without a key that the other side honours; no library can promise that.
//
// # Requests whose process died
//
// A process that dies leaves its request in progress, and by default a retry of the client
// takes it over once the lease has lapsed. Some clients do not come back. With
// [WithRecoverable] the request itself is kept while it is in progress, and a worker of the
// store, pgstore.Completer, runs it again through the same handler until it completes, or
// until it has been tried often enough. The client that comes back later finds the finished
// response; one that comes back in between is told that its request is in flight, or waits
// for it ([WithWait]), or takes it over itself where it comes before the worker.
//
//	kept, and removed with                       the claim, and the outcome or the release    RequestIsRecovered,
//	                                                                                          RequestEndsWithCompletion,
//	                                                                                          RequestEndsWithRelease
//	run again by a worker                        only what is interrupted, by one at a time   RecoveryOfNothing,
//	                                                                                          RecoveriesHaveOneWinner
//	run again, and released                      is tried again                               RecoveryThatFails
//	taken over by a client                       is the client's                              RequestIsKeptAnew
//
// This is at least once, as every retry is: a handler that died may have had any part of
// its effects, and a response that was sent but could not be stored is followed by another
// run, with nobody there to see it. What must not happen twice belongs in a [Step], behind a
// [ChildKey], or in a transaction.
//
// A recovered request ([Recovered]) is the one that was kept: its path, its body and the
// headers of [WithRecoverableHeaders], which hold no credentials. It passes authctx with the
// org_id that it was made with, and its handler finds no claims of a token; scope and
// fingerprint are those of the record.
//
// # Without HTTP
//
// [Do] gives a consumer of messages or a job the same guarantee.
//
// # What it does not promise
//
// But in a transaction, the claim, the handler's own effects and the stored response are
// separate steps. A process that dies after the effect and before the response is stored leaves an
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
// A Go client puts keys on its requests with [Transport]. Go's own [http.Transport]
// knows the header as well: it repeats a request that carries it by itself when a
// kept-alive connection breaks before any response.
package idempotency
