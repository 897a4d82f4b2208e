package broker

import (
	"time"
	_ "unsafe" // for go:linkname

	_ "github.com/nats-io/nats-server/v2/server"
)

// How long the members of a cluster hear nothing from a leader until they elect another one: a random time between the two. A
// leader says once a second that it is there. The server's own times are 4 and 9 s: when all members have restarted, requests
// waited for 9 s, and a bid could reach no consumer. With these it is 3 s for most streams and consumers, and 5 s at most.
// Members with the server's own times may be in the same cluster; then they are rarely the ones that are elected.
//
// The server has variables for the two, for its own tests, and no option. If an upgrade renames them, the linker says so.
const (
	electAfter       = 2500 * time.Millisecond
	electAfterAtMost = 5 * time.Second
)

//go:linkname minElectionTimeout github.com/nats-io/nats-server/v2/server.minElectionTimeout
var minElectionTimeout time.Duration

//go:linkname maxElectionTimeout github.com/nats-io/nats-server/v2/server.maxElectionTimeout
var maxElectionTimeout time.Duration

func init() { minElectionTimeout, maxElectionTimeout = electAfter, electAfterAtMost }
