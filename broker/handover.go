package broker

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	_ "unsafe" // for go:linkname

	"github.com/nats-io/nats-server/v2/server"
)

// lookupRaftNode returns a group of the server's by its name; nil if it has none. Streams, consumers and the cluster's own log
// are such groups. The server has no option or call for handing over all that it leads, short of leaving.
//
//go:linkname lookupRaftNode github.com/nats-io/nats-server/v2/server.(*Server).lookupRaftNode
func lookupRaftNode(s *server.Server, group string) server.RaftNode

// handOver hands over what a member of a cluster leads to the others, and lets it lead nothing more until the server is started
// again: it has failed to write to its store. Without that the others elect leaders when they have not heard the old one for a
// while, for one group after the other, as each comes to a write; and the server, if it leads the cluster, first waits for 2 s.
// A handover takes a few milliseconds. A group that has failed already cannot be handed over. It does not wait, since the server may
// hold the lock of a group for long.
func handOver(s *server.Server, dir string) {
	for _, group := range raftGroups(dir) {
		if node := lookupRaftNode(s, group); node != nil {
			go func() { // ends when it has the lock
				node.StepDown()
				node.SetObserver(true)
			}()
		}
	}
}

// raftGroups returns the names of the groups of which a store has a copy.
func raftGroups(dir string) (names []string) {
	groups, err := fs.Glob(os.DirFS(filepath.Join(dir, server.JetStreamStoreDir)), "*/_js_/*") // dir may have brackets in it
	if err != nil {
		panic(err) // the pattern is malformed
	}
	for _, group := range groups {
		names = append(names, path.Base(group))
	}
	return names
}
