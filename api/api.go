package api

import "strings"

// API is one of the APIs that clients and engines speak: it decides what an error looks like, how a stream ends, and
// where a body has its conversation.
type API string

const (
	Chat        API = "chat"        // /v1/chat/completions
	Completions API = "completions" // /v1/completions
	Embeddings  API = "embeddings"  // /v1/embeddings
	Responses   API = "responses"   // /v1/responses
	Messages    API = "messages"    // /v1/messages, Anthropic's
	OpenAI      API = "openai"      // any other path under /v1/: audio, images, rerank
	Other       API = "other"       // any other path: nothing is known of its streams
)

// suffixes are the ends of the paths of those APIs that are known by their path alone. The longer one of two that match
// comes first.
var suffixes = []struct {
	suffix string
	api    API
}{
	{"/chat/completions", Chat}, {"/completions", Completions}, {"/embeddings", Embeddings}, {"/responses", Responses}, {"/messages", Messages},
}

// Of is the API that a path, with or without a query, belongs to.
func Of(path string) API {
	path, _, _ = strings.Cut(path, "?")
	for _, s := range suffixes {
		if strings.HasSuffix(path, s.suffix) {
			return s.api
		}
	}
	if strings.HasPrefix(path, "/v1/") {
		return OpenAI
	}
	return Other
}

// Suffix is the end of the API's path, behind /v1; "" for OpenAI and Other.
func (a API) Suffix() string {
	for _, s := range suffixes {
		if s.api == a {
			return s.suffix
		}
	}
	return ""
}

// completes says whether the API is one of OpenAI's two completions, whose streams end with [DONE].
func (a API) completes() bool { return a == Chat || a == Completions }

// hasLastEvent says whether each stream of the API ends with an event that says so.
func (a API) hasLastEvent() bool { return a.completes() || a == Responses || a == Messages }

// openAIErrors says whether an error in a stream of the API is an event with an error object as OpenAI's.
func (a API) openAIErrors() bool { return a.completes() || a == Embeddings || a == OpenAI }

// conversationField is the member of a body that has the conversation.
func (a API) conversationField() string {
	if a == Responses {
		return "input"
	}
	return "messages"
}
