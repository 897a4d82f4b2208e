// Package suite measures Pulley against its bars: it starts simulated engines of zero service time, the yardstick (a
// bare reverse proxy in front of the same engines) and Pulley, each as a process of its own, and puts the same load on
// each in turn, several times in each of several rounds. Every figure is the median of the rounds, every ratio the median
// of the ratios within a round: a machine that is disturbed disturbs all sides alike.
package suite
