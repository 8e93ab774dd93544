// Package authctx verifies the bearer token of a request and puts the tenant
// that it names, its org_id, into the request's context.
//
// Pin the algorithm and the key that tokens are signed with, and say which
// routes a caller reaches before having a token:
//
//	auth, err := authctx.New(
//		authctx.WithKey("EdDSA", publicKey),
//		authctx.WithIssuer("https://id.example.com"),
//		authctx.WithAudience("https://api.example.com"),
//		authctx.WithExclude("POST /v1/auth/login", "GET /healthz"),
//	)
//
// Put the middleware around the router, and inside whatever changes the method
// or the path of a request, so that both see the same route:
//
//	http.ListenAndServe(addr, auth.Middleware(mux))
//
// Handlers and the packages below read the tenant with [tenancy.OrgID], and
// what else the token says with [Subject] and [Claims]:
//
//	orgID, ok := tenancy.OrgID(r.Context())
//	subject, ok := authctx.Subject(r.Context())
//
// # What is accepted
//
// A token is a JWT (RFC 7519) signed with the pinned algorithm (RFC 8725
// section 3.1), in the one Authorization header of the request (RFC 6750
// section 2.1). It must have the claim exp and, where they are asked for, the
// right iss and aud; nbf counts where present, and iat is not checked. The
// org_id must be a UUID in the hyphenated form of 36 characters that RFC 9562
// section 4 defines, in either case, and not the nil UUID. A token with the
// header crit (RFC 7515 section 4.1.11) is refused, for no extension is
// supported.
//
// A token in a form body or in the query is ignored. URLs end up in logs, in
// browser histories and in Referer headers, which is why RFC 9700 section 4.3.2
// rules such tokens out; and reading the body here would take it from the
// handler.
//
// Everything else is refused: with 401, or 400 where the header itself is
// malformed, a challenge (RFC 6750 section 3) and a problem (RFC 9457) that
// tells the caller what to do. No part of the token, of the keys or of a
// library's message is sent. [WithErrorHandler] sees the whole error.
package authctx
