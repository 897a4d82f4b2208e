package api

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// conversation builds a chain of hashes of a request's messages, by which a follow-up finds the
// worker that has the start of the conversation in its cache:
//
//	prefix[k] = hash(what comes before the messages, hash(message 0 , … , message k))
//
// A request's worker is remembered under the last hash of its chain (ConversationHash). A request
// is a follow-up of an earlier one if one of its own prefixes, except the last, was the last of the
// earlier chain (PrefixHashes): it contains everything that the earlier one contained, and more. So
// neither identical requests nor requests that share only a system prompt collect on one worker:
// what they share is soon in every cache, and the price spreads them.
//
// The hash is XXH64 of the messages' bytes as the client wrote them, without the white space
// between them, so it is the same in every gateway and needs no parsing beyond the scan's. A client
// that writes an old message differently when it sends it again, for example with other white space
// in it, starts a new conversation. Only "cache_control" is left out, because Anthropic's clients
// put it on the newest messages and remove it from the older ones in every request.
//
// What engines put before the messages (tools, system, instructions) may come after them in the
// body, so its hash is mixed into each prefix at the end.
//
// The hash is not a security boundary: a client that constructs two conversations with the same
// hash is at worst sent to a worker without its prefix.
type conversation struct {
	sum    xxhash.Digest // hash of the messages so far, each with a comma
	prefix []uint64
	before [6]uint64 // by the index in preceding; 0: absent
	again  cursor    // reads a value that is hashed without some of its members
}

// maxPrefix bounds a chain. For a longer conversation the last prefixes are kept, at least half as
// many: a follow-up adds few messages, so the hash that is looked for is near the end.
const maxPrefix = 512

// read adds the messages of the array that t is at.
func (c *conversation) read(t *cursor) {
	c.sum.Reset()
	t.open()
	for t.element() {
		t.cache = false
		message := t.value()
		if message == nil {
			return
		}
		if len(c.prefix) == maxPrefix {
			c.prefix = append(c.prefix[:0], c.prefix[maxPrefix/2:]...)
		}
		c.hash(&c.sum, message, t.cache)
		c.sum.WriteString(",")
		c.prefix = append(c.prefix, c.sum.Sum64())
	}
}

// precede adds the field that t is at, one that engines put before the messages.
func (c *conversation) precede(field string, t *cursor) {
	to := &c.before[slices.Index(preceding, field)]
	t.cache = false
	value := t.value()
	if *to = 0; string(value) == "null" {
		return
	}
	var sum xxhash.Digest
	sum.Reset()
	c.hash(&sum, value, t.cache)
	*to = sum.Sum64()
}

// chain completes and returns the prefixes. It is nil for a body without messages.
func (c *conversation) chain() []uint64 {
	var both [16]byte
	var sum xxhash.Digest
	sum.Reset()
	for _, h := range c.before {
		binary.LittleEndian.PutUint64(both[:], h)
		sum.Write(both[:8])
	}
	binary.LittleEndian.PutUint64(both[:], sum.Sum64())
	for i, h := range c.prefix {
		binary.LittleEndian.PutUint64(both[8:], h)
		c.prefix[i] = xxhash.Sum64(both[:])
	}
	return c.prefix
}

// cacheControl is the member that is left out of a hash.
const cacheControl = `"cache_control"`

// hash adds a JSON value to a hash. cache says that it contains members "cache_control", which are
// left out. They are found by their quotes, which are escaped inside a string.
func (c *conversation) hash(sum *xxhash.Digest, v []byte, cache bool) {
	t := &c.again
	for cache {
		before, after, found := bytes.Cut(v, []byte(cacheControl))
		if !found {
			break
		}
		if t.b, t.at = after, 0; t.peek() == ':' {
			t.at++
			t.value()
			after = after[t.at:]
			var comma bool
			if before, comma = bytes.CutSuffix(bytes.TrimRight(before, jsonSpace), []byte(",")); !comma {
				after = bytes.TrimPrefix(bytes.TrimLeft(after, jsonSpace), []byte(","))
			}
		} else { // it is not a member's name
			before = v[:len(before)+len(cacheControl)]
		}
		sum.Write(before)
		v = after
	}
	sum.Write(v)
}

const jsonSpace = " \t\r\n"

// ConversationHash is the hash under which this request's worker is remembered; 0: none.
func (c *Call) ConversationHash() uint64 {
	if len(c.prefix) == 0 {
		return 0
	}
	return c.prefix[len(c.prefix)-1]
}

// PrefixHashes yields the hashes under which the worker of an earlier part of this conversation may
// have been remembered, the longest prefix first.
func (c *Call) PrefixHashes(yield func(uint64) bool) {
	for i := len(c.prefix) - 2; i >= 0; i-- {
		if !yield(c.prefix[i]) {
			return
		}
	}
}
