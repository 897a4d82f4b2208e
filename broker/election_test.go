package broker

import "testing"

// The server had times of its own for elections, so that those of this package replace them.
func TestElectionTimes(t *testing.T) {
	if minElectionTimeout != electAfter || maxElectionTimeout != electAfterAtMost {
		t.Errorf("the server elects after %v to %v", minElectionTimeout, maxElectionTimeout)
	}
}
