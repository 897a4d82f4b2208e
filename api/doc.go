// Package api is what clients and engines say to each other over HTTP, as far as Pulley reads or changes it: which API a
// path belongs to ([Of]), the few fields of a body that decide about a request ([Scan]), the errors of each API
// ([Error]), whether an answer is whole and how many tokens it has ([Inspector]), and the few bytes that are changed on
// the way: a renamed model in a request ([RenameModel]), model and service tier in an answer ([Editor]).
//
// Bodies and answers are never decoded and encoded again. Nothing here calls or waits for anything.
package api
