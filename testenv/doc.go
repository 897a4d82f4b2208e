// Package testenv is for tests inside a testing/synctest bubble: a real broker with JetStream, simulated engines, and
// in-memory connections that can be frozen and cut. Time is virtual: half a minute of silence takes no time. It imports
// neither gateway nor worker, so that their own tests can use it; package scenarios adds them.
//
// A test package that uses it has
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
// and its tests are
//
//	testenv.Run(t, func(t *testing.T, env *testenv.Env) { … })
package testenv
