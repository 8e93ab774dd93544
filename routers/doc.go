// Package routers holds the end-to-end test of the middleware in the routers that
// services use: http.ServeMux, chi, gin and Echo, over HTTP/1.1 and HTTP/2, on a real
// PostgreSQL. It is a module of its own, so that no router is a dependency of the
// library.
//
// Each router has the same little service, written in its own idiom, and all of them
// have to pass the same test. The lines that wire them up are those of the README.
package routers
