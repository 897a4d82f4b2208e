package subjects

import (
	"encoding/binary"
	"fmt"
)

// A link carries what one worker sends to one gateway: claims and frames of all its attempts, in order and without loss.
// Its messages have consecutive numbers. The worker keeps each one until the gateway has acknowledged it with a LinkAck, and
// sends it again if that does not come.

// LinkHeader is the length of what a message of a link begins with: its number, and that of the oldest message that the
// worker still keeps.
const LinkHeader = 8 + 8

// itemHeader is the length of an item's kind and payload length.
const itemHeader = 1 + 4

// ItemKind is the kind of an item of a link's message.
type ItemKind byte

const (
	ItemClaim  ItemKind = 'c' // a Claim, as JSON
	ItemFrames ItemKind = 'f' // a Prefix, and the frames of one attempt
	ItemAlive  ItemKind = 'a' // an Alive, as JSON
)

// AppendItem appends an item to a link's message.
func AppendItem(msg []byte, kind ItemKind, payload []byte) []byte {
	msg = append(msg, byte(kind))
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(payload)))
	return append(msg, payload...)
}

// ItemSize is the length of an item with a payload of n bytes.
func ItemSize(n int) int { return itemHeader + n }

// PutLinkHeader writes the header of a link's message into its first LinkHeader bytes.
func PutLinkHeader(msg []byte, number, oldest uint64) {
	binary.BigEndian.PutUint64(msg, number)
	binary.BigEndian.PutUint64(msg[8:], oldest)
}

// ParseLink splits a link's message into header and items.
func ParseLink(msg []byte) (number, oldest uint64, items []byte, err error) {
	if len(msg) < LinkHeader {
		return 0, 0, nil, fmt.Errorf("%w: a link's message of %d bytes", ErrFrame, len(msg))
	}
	number, oldest = binary.BigEndian.Uint64(msg), binary.BigEndian.Uint64(msg[8:])
	if number == 0 || oldest == 0 || oldest > number {
		return 0, 0, nil, fmt.Errorf("%w: message %d of a link, the oldest is %d", ErrFrame, number, oldest)
	}
	return number, oldest, msg[LinkHeader:], nil
}

// NextItem returns the first item and the rest. The payload is a part of b. A reader skips kinds that it does not know.
func NextItem(b []byte) (kind ItemKind, payload, rest []byte, err error) {
	if len(b) < itemHeader {
		return 0, nil, nil, fmt.Errorf("%w: %d bytes of items left", ErrFrame, len(b))
	}
	n := binary.BigEndian.Uint32(b[1:])
	if uint64(n) > uint64(len(b)-itemHeader) {
		return 0, nil, nil, fmt.Errorf("%w: item of %d bytes in %d", ErrFrame, n, len(b)-itemHeader)
	}
	return ItemKind(b[0]), b[itemHeader : itemHeader+n], b[itemHeader+n:], nil
}

// LinkAck tells a worker which message of its link a gateway expects next: it has all before. It is sent on WorkerGot.
type LinkAck struct {
	Next  uint64 `json:"next,string"`
	Again bool   `json:"again,omitempty"` // a later message has come: send again from Next on
}
