// Package scenarios has the tests that run all of Pulley: gateways, workers and simulated engines
// on a real broker, in virtual time (package testenv). A test states what a client or an operator
// may rely on. The files are named after what the tests are about: a fault, a policy, a key, a
// trace.
package scenarios
