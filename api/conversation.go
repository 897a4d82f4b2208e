package api

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// conversation makes a chain of hashes of a request's messages, by which a
// follow-up finds the worker that has the conversation's begin in its cache:
//
//	prefix[k] = hash(what comes before the messages, hash(message 0 , … , message k))
//
// A request's home is learned under the last of its chain (Learnable), and a
// request is a follow-up of an earlier one if one of its own prefixes, the last
// excepted, was the last of that one's chain (Follows): it says all that the
// earlier one said, and then more. So neither requests that say the same nor
// those that only share a system prompt gather on one worker: what they share is
// soon in every cache, and price spreads them.
//
// The hash is XXH64 of the messages' bytes as the client wrote them, without the
// white space between them, so that it is the same in every gateway and needs no
// parse beside the scan's. A client that writes an old message in another way
// when it sends it again, such as with other white space in it, begins a new
// conversation. Only "cache_control" is left out, since Anthropic's clients put
// it on the newest messages and take it away from the older ones in every turn.
//
// What engines put before the messages (tools, system, instructions) may stand
// behind them in the body, so its hash is mixed into each prefix at the end.
//
// Nothing is promised by it: who makes two conversations with one hash gets at
// worst a worker without their prefix.
type conversation struct {
	sum    xxhash.Digest // of the messages so far, each with a comma
	prefix []uint64
	before [6]uint64 // by the index in preceding; 0: absent
	again  cursor    // to read a value that is hashed without some of its members
}

// maxPrefix bounds a chain. Of a longer conversation the later part of its
// prefixes is kept, at least half of this: a follow-up adds few messages, so
// that the one that is looked for is near the end.
const maxPrefix = 512

// read takes in the array of messages that t is at.
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

// precede takes in the field that t is at, which engines put before the messages.
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

// chain ends the conversation. It is nil for a body without messages.
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

// cacheControl is left out of a hash.
const cacheControl = `"cache_control"`

// hash adds a JSON value to a hash; cache says that members "cache_control" are
// in it, which are left out. They are found by their quotes: inside a string
// these are escaped.
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
		} else { // it is no member's name
			before = v[:len(before)+len(cacheControl)]
		}
		sum.Write(before)
		v = after
	}
	sum.Write(v)
}

const jsonSpace = " \t\r\n"

// ConversationHash is the hash under which this request's home is learned; 0 is none.
func (c *Call) ConversationHash() uint64 {
	if len(c.prefix) == 0 {
		return 0
	}
	return c.prefix[len(c.prefix)-1]
}

// PrefixHashes yields the hashes under which the home of a conversation that this
// request goes on with may have been learned, the longest first.
func (c *Call) PrefixHashes(yield func(uint64) bool) {
	for i := len(c.prefix) - 2; i >= 0; i-- {
		if !yield(c.prefix[i]) {
			return
		}
	}
}
