// Package demo drives the payments service with real HTTP requests, and shows what
// pgidem does to them in a transcript for people to read.
//
// It is no part of what a user would copy; package service beside it is. [Run]
// shows the script and proves each of its claims on the way, and [Serve] leaves
// the service to the reader and to curl.
package demo
