// Package api is what clients and engines say to each other over HTTP, as far as Pulley reads or changes it: which API
// a path belongs to ([Of]), which paths of engines clients may use ([NormalURL], [Doors]), the few fields of a body that
// matter for a request ([Scan]), the errors of each API ([Error]), whether an answer is complete and how many tokens it
// has ([Inspector]), the id of a response ([ResponseID]), and the few bytes that are changed on the way: the model's name
// in a request ([RenameModel]), model and service tier in an answer ([Editor]).
//
// Bodies and answers are never decoded and encoded again. Nothing here makes a call or blocks.
package api
