// Package testenv runs the whole of Pulley inside a testing/synctest bubble: a
// real broker with JetStream, gateways, workers and simulated engines, joined
// by in-memory connections that can be frozen and cut. Time is virtual: half a
// minute of silence takes none.
//
// A test package that uses it has
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
// and its tests are
//
//	testenv.Run(t, func(t *testing.T, env *testenv.Env) { … })
package testenv
