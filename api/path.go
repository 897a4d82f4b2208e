package api

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// NormalURL returns a URL whose path has one spelling, so that what is decided about a path holds for every reader of it:
// segments are decoded once and encoded again, empty ones and "." are left out, ".." removes the one before it. A slash
// at the end stays. The URL itself is returned if its path is normal.
//
// A path that readers might understand differently is an error of status 404: with a NUL, or with a segment in which an
// encoded slash or backslash separates dots, as in "..%2fsleep", however often it is encoded. Any other encoded slash stays
// one, as in the name "org%2Fmodel".
func NormalURL(u *url.URL) (*url.URL, error) {
	if u.RawPath == "" && plainPath(u.Path) {
		return u, nil
	}
	escaped := u.EscapedPath()
	if !strings.HasPrefix(escaped, "/") {
		return nil, badPath(escaped)
	}
	var plain, coded []string
	for segment := range strings.SplitSeq(escaped[1:], "/") {
		s, err := url.PathUnescape(segment)
		switch {
		case err == nil && s == "", s == ".":
		case err != nil || !oneSegment(s):
			return nil, badPath(escaped)
		case s == "..":
			plain, coded = plain[:max(len(plain)-1, 0)], coded[:max(len(coded)-1, 0)]
		default:
			plain, coded = append(plain, s), append(coded, url.PathEscape(s))
		}
	}
	end := ""
	if strings.HasSuffix(escaped, "/") && len(plain) > 0 {
		end = "/"
	}
	n := *u
	n.Path, n.RawPath = "/"+strings.Join(plain, "/")+end, "/"+strings.Join(coded, "/")+end
	return &n, nil
}

// plainPath says that a path is normal and needs no encoding.
func plainPath(path string) bool {
	if path == "" || path[0] != '/' {
		return false
	}
	for i := range len(path) {
		switch c := path[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		case c == '/', c == '.':
			if i > 0 && path[i-1] == '/' {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// oneSegment says that a decoded segment of a path is one segment for any reader. "." and ".." themselves are.
func oneSegment(s string) bool {
	if s == "." || s == ".." {
		return true
	}
	for {
		if strings.ContainsRune(s, 0) {
			return false
		}
		slashed := strings.Contains(s, "/")
		for piece := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == '/' || r == '\\' }) {
			piece, _, _ := strings.Cut(piece, ";") // some servers leave out what follows
			if piece == "." || piece == ".." {
				return false
			}
		}
		if s[0] == ';' || slashed && (s[0] == '/' || s[len(s)-1] == '/' || strings.Contains(s, "//")) {
			return false
		}
		again, err := url.PathUnescape(s) // by a reader that decodes twice
		if err != nil || again == s {
			return true
		}
		s = again
	}
}

func badPath(escaped string) *Error {
	return Errorf(http.StatusNotFound, "path_not_allowed",
		"nothing is served at %s: the path has a NUL, or encoded dots or slashes that are ambiguous", Quote(escaped))
}

// inferencePaths are the paths of engines on which clients ask for inference, or for what belongs to it, such as the tokens
// of a text. Their management is not among them: to load, unload, pause, abort, or change weights or settings. A path that
// only some engines have is under the first of them; others may have it too, and none has it for something else.
var inferencePaths = map[string][]string{
	"every engine": {
		"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/responses/input_tokens",
		"/v1/messages", "/v1/messages/count_tokens", "/v1/moderations", "/v1/rerank",
		"/v1/images/generations", "/v1/images/edits", "/v1/images/variations",
		"/v1/audio/speech", "/v1/audio/transcriptions", "/v1/audio/translations",
	},
	"vllm": {
		"/tokenize", "/detokenize", "/score", "/v1/score", "/rerank", "/v2/rerank", "/pooling", "/classify", "/invocations",
		"/v1/chat/completions/render", "/v1/completions/render", "/inference/v1/generate",
	},
	"sglang":    {"/generate", "/encode", "/v1/classify", "/v1/tokenize", "/v1/detokenize"},
	"tgi":       {"/generate_stream", "/chat_tokenize"},
	"llama.cpp": {"/completion", "/completions", "/chat/completions", "/embedding", "/embeddings", "/infill", "/reranking", "/v1/reranking", "/apply-template"},
	"ollama":    {"/api/chat", "/api/generate", "/api/embed", "/api/embeddings"},
	"lmstudio":  {"/api/v0/chat/completions", "/api/v0/completions", "/api/v0/embeddings", "/api/v1/chat"},
	"triton": {
		"/v2/models/*/infer", "/v2/models/*/generate", "/v2/models/*/generate_stream",
		"/v2/models/*/versions/*/infer", "/v2/models/*/versions/*/generate", "/v2/models/*/versions/*/generate_stream",
	},
}

// cheapPaths are the inference paths on which an engine generates nothing and runs no model: its HTTP server applies a chat
// template, or turns text into tokens and back. Reranking, scoring, classifying and embedding are not among them: these
// run the model, in batches with what is generated.
var cheapPaths = map[string]bool{
	"/tokenize": true, "/detokenize": true, // vLLM, SGLang, llama.cpp, TGI
	"/v1/tokenize": true, "/v1/detokenize": true, // SGLang
	"/v1/messages/count_tokens": true, "/v1/responses/input_tokens": true,
	"/v1/chat/completions/render": true, "/v1/completions/render": true, // vLLM
	"/chat_tokenize": true, "/apply-template": true, // TGI; llama.cpp
}

// Cheap reports whether an engine answers calls of a path, which is normal, without a slot: beside whatever it generates.
func Cheap(path string) bool { return cheapPaths[path] }

// Doors are the paths of engines that clients may use. They do not change.
type Doors struct {
	exact    map[string]bool
	patterns [][]string // by segments
}

// NewDoors returns the inference paths of all engines, and those that match the patterns in more: paths in which a segment
// "*" stands for any one segment, and "**" at the end for one or more.
func NewDoors(more []string) (*Doors, error) {
	d := &Doors{exact: make(map[string]bool)}
	for _, paths := range inferencePaths {
		for _, p := range paths {
			d.add(p)
		}
	}
	for _, p := range more {
		u, err := url.Parse(strings.ReplaceAll(p, "*", "x"))
		if err == nil {
			u, err = NormalURL(u)
		}
		segments := strings.Split(p, "/")
		switch stars := strings.Count(p, "*"); {
		case err != nil, !strings.HasPrefix(p, "/"), u.EscapedPath() != strings.ReplaceAll(p, "*", "x"), p == "/", strings.HasSuffix(p, "/"):
			return nil, fmt.Errorf("allowed path %q: must be a path such as /v1/x, without a query, a slash at the end, dots or doubled slashes", p)
		case stars != 2*count(segments, "**")+count(segments, "*"), slices.Contains(segments[:len(segments)-1], "**"):
			return nil, fmt.Errorf("allowed path %q: * must be a whole segment, and ** the last one", p)
		case len(segments) == 2 && stars > 0:
			return nil, fmt.Errorf("allowed path %q: that is every path, management included; name the paths", p)
		}
		d.add(p)
	}
	return d, nil
}

func count(list []string, s string) (n int) {
	for _, x := range list {
		if x == s {
			n++
		}
	}
	return n
}

func (d *Doors) add(path string) {
	if strings.Contains(path, "*") {
		d.patterns = append(d.patterns, strings.Split(path, "/"))
	} else {
		d.exact[path] = true
	}
}

// Allows reports whether clients may use a path, which is normal. None with a slash at the end is allowed.
func (d *Doors) Allows(u *url.URL) bool { return d.Route(u.EscapedPath()) != "" }

// Route is the path or the pattern that an escaped path matches; "" if clients may not use it. There are only so many of them.
func (d *Doors) Route(path string) string {
	if d.exact[path] {
		return path
	}
	if strings.HasSuffix(path, "/") {
		return ""
	}
	var segments []string
	for _, p := range d.patterns {
		if segments == nil {
			segments = strings.Split(path, "/")
		}
		if matches(p, segments) {
			return strings.Join(p, "/")
		}
	}
	return ""
}

// matches says that segments match a pattern. Only "*" stands for a segment with an encoded slash, backslash or control
// character.
func matches(pattern, segments []string) bool {
	for i, p := range pattern {
		switch {
		case p == "**":
			rest := segments[min(i, len(segments)):]
			return len(rest) > 0 && !slices.ContainsFunc(rest, func(s string) bool {
				return slices.ContainsFunc([]string{"%2F", "%5C", "%0", "%1", "%7F"}, func(code string) bool { return strings.Contains(s, code) })
			})
		case i == len(segments), p != "*" && p != segments[i]:
			return false
		}
	}
	return len(pattern) == len(segments)
}
