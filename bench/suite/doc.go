// Package suite measures Pulley against its performance targets. It starts simulated engines of zero service time, the
// yardstick (a plain reverse proxy in front of the same engines) and Pulley, each as a separate process, and puts the
// same load on each in turn, several times in each of several rounds. Every figure is the median of the rounds, every
// ratio the median of the ratios within a round: a disturbance of the machine affects all sides alike.
//
// [Run] measures pulley up. [RunApart] measures a fleet whose broker, gateway and workers are processes of their own, beside
// the same sides, and what each part uses for a request and a token.
package suite
