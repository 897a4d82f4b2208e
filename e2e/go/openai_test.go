package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/ssestream"
	"github.com/openai/openai-go/v3/responses"
)

// collect reads a chat to its end, calling each (if any) after every piece.
func collect(stream *ssestream.Stream[openai.ChatCompletionChunk], each func(*arrivals)) (*arrivals, openai.ChatCompletionAccumulator) {
	var got arrivals
	var acc openai.ChatCompletionAccumulator
	for stream.Next() {
		chunk := stream.Current()
		acc.AddChunk(chunk)
		if len(chunk.Choices) == 0 {
			continue
		}
		got.add(chunk.Choices[0].Delta.Content)
		if each != nil {
			each(&got)
		}
	}
	return &got, acc
}

func TestModels(t *testing.T) {
	x := setup(t)
	client := x.client()
	var ids []string
	list := client.Models.ListAutoPaging(t.Context())
	for list.Next() {
		ids = append(ids, list.Current().ID)
	}
	if err := list.Err(); err != nil || !slices.Contains(ids, x.model) {
		t.Fatalf("list: %q, %v; want %q among them", ids, err, x.model)
	}
	one, err := client.Models.Get(t.Context(), x.model)
	if err != nil || one.ID != x.model {
		t.Fatalf("get: %+v, %v", one, err)
	}
}

func TestChat(t *testing.T) {
	x := setup(t)
	client := x.client()
	answer, err := client.Chat.Completions.New(t.Context(), x.chat(20))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := answer.Choices[0].Message.Content, x.directText(t, 20); got != want {
		t.Fatalf("got %q\nwant %q", got, want)
	}
	if answer.Choices[0].FinishReason != "length" || answer.Usage.CompletionTokens != 20 {
		t.Fatalf("finish reason %q, usage %+v", answer.Choices[0].FinishReason, answer.Usage)
	}
}

func TestChatStreamsTokenByToken(t *testing.T) {
	x := setup(t)
	client := x.client()
	ask := x.chat(40)
	ask.StreamOptions.IncludeUsage = openai.Bool(true)
	stream := client.Chat.Completions.NewStreaming(t.Context(), ask)
	got, acc := collect(stream, nil)
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	got.checkStream(t, x.directText(t, 40), 40)
	if acc.Choices[0].FinishReason != "length" || acc.Usage.CompletionTokens != 40 {
		t.Fatalf("finish reason %q, usage %+v", acc.Choices[0].FinishReason, acc.Usage)
	}
}

func TestEmbeddings(t *testing.T) {
	x := setup(t)
	client := x.client()
	ask := openai.EmbeddingNewParams{
		Model: x.model,
		Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"hello", "a longer sentence"}},
	}
	var want openai.CreateEmbeddingResponse
	x.direct(t, "embeddings", ask, &want)
	got, err := client.Embeddings.New(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	for i := range want.Data {
		if len(want.Data[i].Embedding) < 2 || !slices.Equal(got.Data[i].Embedding, want.Data[i].Embedding) {
			t.Fatalf("input %d: got %v\nwant %v", i, got.Data[i].Embedding, want.Data[i].Embedding)
		}
	}
}

func TestToolsInTheBody(t *testing.T) {
	x := setup(t)
	client := x.client()
	ask := x.chat(20)
	ask.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{
		Name:       "get_weather",
		Parameters: openai.FunctionParameters{"type": "object", "properties": map[string]any{"city": map[string]any{"type": "string"}}},
	})}
	ask.ToolChoice = openai.ToolChoiceOptionFunctionToolChoice(openai.ChatCompletionNamedToolChoiceFunctionParam{Name: "get_weather"})
	answer, err := client.Chat.Completions.New(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	if !x.simulated {
		return // a model without tools answers in words
	}
	call := answer.Choices[0].Message.ToolCalls[0].Function
	if call.Name != "get_weather" || !json.Valid([]byte(call.Arguments)) {
		t.Fatalf("called %s(%s)", call.Name, call.Arguments)
	}
	stream := client.Chat.Completions.NewStreaming(t.Context(), ask)
	_, acc := collect(stream, nil)
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if got := acc.Choices[0].Message.ToolCalls[0].Function.Arguments; got != call.Arguments {
		t.Fatalf("streamed arguments %q, want %q", got, call.Arguments)
	}
}

func TestUnknownModel(t *testing.T) {
	x := setup(t)
	client := x.client()
	ask := x.chat(5)
	ask.Model = "no/such:model"
	_, err := client.Chat.Completions.New(t.Context(), ask)
	apiErr := wantStatus(t, err, http.StatusNotFound)
	if apiErr.Code != "model_not_found" || !strings.Contains(apiErr.Message, ask.Model) {
		t.Fatalf("code %q, message %q", apiErr.Code, apiErr.Message)
	}
	if x.pulley && !strings.Contains(apiErr.Message, x.model) {
		t.Fatalf("the message names none of the models there are: %q", apiErr.Message)
	}
}

func TestRefusalIsRetriedBySDK(t *testing.T) {
	x := setup(t)
	r := refuser{n: 1}
	client := x.client(option.WithMiddleware(r.attempt))
	answer, err := client.Chat.Completions.New(t.Context(), x.chat(5))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.statuses, []int{429, 200}) {
		t.Fatalf("attempts ended with %v, want 429 and 200", r.statuses)
	}
	if got, want := answer.Choices[0].Message.Content, x.directText(t, 5); got != want {
		t.Fatalf("got %q\nwant %q", got, want)
	}
}

func TestRefusalToTheEnd(t *testing.T) {
	x := setup(t)
	client := x.client(option.WithMaxRetries(0))
	_, err := client.Chat.Completions.New(t.Context(), x.chat(5), misbehave("refuse"))
	apiErr := wantStatus(t, err, http.StatusTooManyRequests)
	after, err := strconv.Atoi(apiErr.Response.Header.Get("Retry-After"))
	if err != nil || after < 1 || after > 120 {
		t.Fatalf("retry-after %d, %v", after, err)
	}
}

func TestCancelMidStream(t *testing.T) {
	x := setup(t)
	client := x.client()
	before := x.stats(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream := client.Chat.Completions.NewStreaming(ctx, x.chat(900))
	collect(stream, func(got *arrivals) {
		if len(got.pieces) == 5 {
			cancel()
		}
	})
	if err := stream.Err(); !errors.Is(err, context.Canceled) {
		t.Fatalf("the stream ended with %v", err)
	}
	x.checkAborted(t, before)
}

func TestCloseMidStream(t *testing.T) {
	x := setup(t)
	client := x.client()
	before := x.stats(t)
	stream := client.Chat.Completions.NewStreaming(t.Context(), x.chat(900))
	if !stream.Next() {
		t.Fatal(stream.Err())
	}
	stream.Close()
	x.checkAborted(t, before)
}

func TestCancelBeforeTheFirstToken(t *testing.T) {
	x := setup(t)
	client := x.client()
	before := x.stats(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := client.Chat.Completions.New(ctx, x.chat(5), misbehave("hang"))
		done <- err
	}()
	x.awaitBusy(t, before)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	x.checkAborted(t, before)
}

func TestRequestTimeout(t *testing.T) {
	x := setup(t)
	client := x.client(option.WithMaxRetries(0))
	before := x.stats(t)
	_, err := client.Chat.Completions.New(t.Context(), x.chat(5), misbehave("hang"), option.WithRequestTimeout(1500*time.Millisecond))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want a deadline exceeded", err)
	}
	x.checkAborted(t, before)
}

func TestCutStreamIsAnError(t *testing.T) {
	x := setup(t)
	client := x.client()
	stream := client.Chat.Completions.NewStreaming(t.Context(), x.chat(40), misbehave("cut-after=5"))
	got, _ := collect(stream, nil)
	if stream.Err() == nil {
		t.Fatal("the stream ended as if it were whole")
	}
	got.checkPart(t, x.directText(t, 40))
	if event, ok := errors.AsType[*ssestream.StreamError](stream.Err()); x.pulley && (!ok || !strings.Contains(event.Message, `"code"`)) {
		t.Fatalf("got %v, want an error event in the API's form", stream.Err())
	}
}

func TestCutAnswerIsAnError(t *testing.T) {
	x := setup(t)
	client := x.client(option.WithMaxRetries(0))
	if answer, err := client.Chat.Completions.New(t.Context(), x.chat(40), misbehave("cut-after=5")); err == nil {
		t.Fatalf("got %s", answer.RawJSON())
	}
}

func TestResponses(t *testing.T) {
	x := setup(t)
	if !x.simulated {
		t.Skip("needs simulated engines")
	}
	client := x.client()
	ask := responses.ResponseNewParams{
		Model:           x.model,
		Input:           responses.ResponseNewParamsInputUnion{OfString: openai.String("Tell me a story.")},
		MaxOutputTokens: openai.Int(20),
	}
	answer, err := client.Responses.New(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	var got arrivals
	var last string
	stream := client.Responses.NewStreaming(t.Context(), ask)
	for stream.Next() {
		event := stream.Current()
		last = event.Type
		if event.Type == "response.output_text.delta" {
			got.add(event.Delta)
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	got.checkStream(t, answer.OutputText(), 20)
	if last != "response.completed" && last != "response.incomplete" {
		t.Fatalf("the last event is %q", last)
	}
}

func TestBackgroundResponses(t *testing.T) {
	x := setup(t)
	if !x.simulated || !x.pulley {
		t.Skip("needs Pulley and simulated engines")
	}
	client := x.client()
	ask := responses.ResponseNewParams{
		Model:           x.model,
		Input:           responses.ResponseNewParamsInputUnion{OfString: openai.String("Tell me a story.")},
		MaxOutputTokens: openai.Int(60),
		Background:      openai.Bool(true),
	}
	answer, err := client.Responses.New(t.Context(), ask)
	if err != nil || answer.Status != responses.ResponseStatusQueued {
		t.Fatalf("%v: %s", err, answer.RawJSON())
	}
	for answer.Status == responses.ResponseStatusQueued || answer.Status == responses.ResponseStatusInProgress {
		time.Sleep(50 * time.Millisecond)
		if answer, err = client.Responses.Get(t.Context(), answer.ID, responses.ResponseGetParams{}); err != nil {
			t.Fatal(err)
		}
	}
	if answer.Status != responses.ResponseStatusCompleted || answer.OutputText() == "" {
		t.Fatalf("ended as %s", answer.RawJSON())
	}

	var id, text string
	at := int64(-1)
	note := func(event responses.ResponseStreamEventUnion) {
		if event.SequenceNumber != at+1 {
			t.Fatalf("event %d comes after %d", event.SequenceNumber, at)
		}
		at = event.SequenceNumber
		if event.Type == "response.output_text.delta" {
			text += event.Delta
		}
	}
	stream := client.Responses.NewStreaming(t.Context(), ask)
	for len(text) < 100 && stream.Next() {
		note(stream.Current())
		if id == "" {
			id = stream.Current().Response.ID
		}
	}
	stream.Close()
	rest := client.Responses.GetStreaming(t.Context(), id, responses.ResponseGetParams{StartingAfter: openai.Int(at)})
	for rest.Next() {
		note(rest.Current())
	}
	if rest.Err() != nil || text != answer.OutputText() {
		t.Fatalf("%v: %q, want %q", rest.Err(), text, answer.OutputText())
	}

	ask.MaxOutputTokens = openai.Int(100_000)
	long, err := client.Responses.New(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if c, err := client.Responses.Cancel(t.Context(), long.ID); err != nil || c.Status != responses.ResponseStatusCancelled {
			t.Fatalf("cancelled: %v, %+v", err, c)
		}
	}
	if err := client.Responses.Delete(t.Context(), long.ID); err != nil {
		t.Fatal(err)
	}
	_, err = client.Responses.Get(t.Context(), long.ID, responses.ResponseGetParams{})
	wantStatus(t, err, http.StatusNotFound)
}

func wantStatus(t *testing.T, err error, status int) *openai.Error {
	t.Helper()
	apiErr, ok := errors.AsType[*openai.Error](err)
	if !ok || apiErr.StatusCode != status {
		t.Fatalf("got %v, want status %d", err, status)
	}
	return apiErr
}
