// Package policystore keeps the operator's policy and the API keys in a JetStream bucket. A [Store] reads and changes
// them, a [Follower] calls back with each change; every gateway and worker has one of the latter.
//
// A change replaces the revision that it was made from, so two writers cannot undo each other's work, and is then
// announced. A follower that misses the announcement finds the change by polling, within half a second. A stored policy
// that does not validate is ignored: the last valid revision stays in force.
package policystore
