package pgstore

// What the tests of the stored form need to see.
var (
	EncodeHash    = encodeHash
	DecodeHash    = decodeHash
	EncodeHeaders = encodeHeaders
	DecodeHeaders = decodeHeaders
)
