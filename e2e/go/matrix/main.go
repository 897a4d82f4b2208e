// Command matrix plays the calls of e2e/matrix with the SDKs for Go, unmodified. Each line of its input is a call, or
// cancels one; each line of its output is a token that came or the outcome of a call, as the comment in
// e2e/matrix/clients.mjs describes it. Calls run at the same time.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
)

// call is a line of the input.
type call struct {
	ID      int               `json:"id"`
	Cancel  bool              `json:"cancel"`
	URL     string            `json:"url"`
	Model   string            `json:"model"`
	API     string            `json:"api"`
	Stream  bool              `json:"stream"`
	Headers map[string]string `json:"headers"`
	Options struct {
		Retries *int  `json:"retries"`
		Timeout int64 `json:"timeout"` // milliseconds
		Tools   bool  `json:"tools"`
		Usage   bool  `json:"usage"`
	} `json:"options"`
}

// outcome is what the SDK's user sees.
type outcome struct {
	Error   string `json:"error,omitempty"`
	Status  int    `json:"status,omitempty"`
	Code    string `json:"code,omitempty"`
	Type    string `json:"type,omitempty"`
	Message string `json:"message,omitempty"`
	Text    string `json:"text,omitempty"`
	Finish  string `json:"finish,omitempty"`
	Tools   string `json:"tools,omitempty"`
	Usage   string `json:"usage,omitempty"`
	Pieces  *int   `json:"pieces,omitempty"`

	token func(n int)
}

func (o *outcome) add(piece string) {
	if piece == "" {
		return
	}
	o.Text += piece
	if o.Pieces != nil {
		*o.Pieces++
		o.token(*o.Pieces)
	}
}

// note replaces a text that came.
func note(to *string, text string) {
	if text != "" {
		*to = text
	}
}

const question = "What is the weather?"

var parameters = map[string]any{"type": "object", "properties": map[string]any{"city": map[string]any{"type": "string"}}}

var ways = map[string]func(context.Context, call, *outcome) error{
	"chat": chat, "responses": respond, "messages": messages, "embeddings": embed, "speech": speak, "count_tokens": count,
}

func main() {
	var out sync.Mutex
	say := func(v any) {
		out.Lock()
		defer out.Unlock()
		if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
			os.Exit(1)
		}
	}
	var mu sync.Mutex
	cancels := make(map[int]context.CancelFunc)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c call
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			panic(err)
		}
		if c.Cancel {
			mu.Lock()
			if cancel := cancels[c.ID]; cancel != nil {
				cancel()
			}
			mu.Unlock()
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		mu.Lock()
		cancels[c.ID] = cancel
		mu.Unlock()
		go func() { // ends with the call, or the process
			o := outcome{token: func(n int) { say(map[string]any{"id": c.ID, "token": n}) }}
			if c.Stream {
				o.Pieces = new(int)
			}
			if err := ways[c.API](ctx, c, &o); err != nil {
				describe(err, &o)
			}
			if len(o.Text) > 200 {
				o.Text = fmt.Sprintf("%d bytes, %x", len(o.Text), sha256.Sum256([]byte(o.Text)))
			}
			mu.Lock()
			delete(cancels, c.ID)
			mu.Unlock()
			cancel()
			say(map[string]any{"id": c.ID, "outcome": &o})
		}()
	}
}

// address matches what differs from one connection to the next.
var address = regexp.MustCompile(`(127\.0\.0\.1:\d+(->)?)+`)

func describe(err error, o *outcome) {
	o.Message = address.ReplaceAllString(err.Error(), "ADDRESS")
	if e, ok := errors.AsType[*openai.Error](err); ok {
		o.Error, o.Status, o.Code, o.Type, o.Message = "openai.Error", e.StatusCode, e.Code, e.Type, e.Message
		return
	}
	if e, ok := errors.AsType[*anthropic.Error](err); ok {
		o.Error, o.Status, o.Type, o.Message = "anthropic.Error", e.StatusCode, string(e.Type()), e.RawJSON()
		return
	}
	switch {
	case errors.Is(err, context.Canceled):
		o.Error = "context.Canceled"
	case errors.Is(err, context.DeadlineExceeded):
		o.Error = "context.DeadlineExceeded"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		o.Error = "EOF"
	default:
		o.Error = fmt.Sprintf("%T", err)
	}
}

// --- OpenAI's

func openAI(c call) openai.Client {
	opts := []option.RequestOption{option.WithBaseURL(c.URL + "/v1"), option.WithAPIKey("unused")}
	for name, value := range c.Headers {
		opts = append(opts, option.WithHeader(name, value))
	}
	if c.Options.Retries != nil {
		opts = append(opts, option.WithMaxRetries(*c.Options.Retries))
	}
	if c.Options.Timeout > 0 {
		opts = append(opts, option.WithRequestTimeout(time.Duration(c.Options.Timeout)*time.Millisecond))
	}
	return openai.NewClient(opts...)
}

func chatUsage(u openai.CompletionUsage) string {
	if u.TotalTokens == 0 {
		return ""
	}
	return fmt.Sprintf("%d + %d", u.PromptTokens, u.CompletionTokens)
}

func chat(ctx context.Context, c call, o *outcome) error {
	client := openAI(c)
	ask := openai.ChatCompletionNewParams{Model: c.Model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(question)}}
	if c.Options.Tools {
		ask.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{Name: "get_weather", Parameters: parameters})}
	}
	if c.Options.Usage {
		ask.StreamOptions.IncludeUsage = openai.Bool(true)
	}
	if !c.Stream {
		answer, err := client.Chat.Completions.New(ctx, ask)
		if err != nil {
			return err
		}
		if len(answer.Choices) == 0 {
			return errors.New("no choices")
		}
		o.add(answer.Choices[0].Message.Content)
		o.Finish, o.Usage = answer.Choices[0].FinishReason, chatUsage(answer.Usage)
		for _, call := range answer.Choices[0].Message.ToolCalls {
			o.Tools += call.Function.Name + call.Function.Arguments
		}
		return nil
	}
	stream := client.Chat.Completions.NewStreaming(ctx, ask)
	for stream.Next() {
		chunk := stream.Current()
		note(&o.Usage, chatUsage(chunk.Usage))
		for _, choice := range chunk.Choices {
			o.add(choice.Delta.Content)
			note(&o.Finish, choice.FinishReason)
			for _, call := range choice.Delta.ToolCalls {
				o.Tools += call.Function.Name + call.Function.Arguments
			}
		}
	}
	return stream.Err()
}

func respond(ctx context.Context, c call, o *outcome) error {
	client := openAI(c)
	ask := responses.ResponseNewParams{Model: c.Model, Input: responses.ResponseNewParamsInputUnion{OfString: openai.String(question)}}
	if c.Options.Tools {
		ask.Tools = []responses.ToolUnionParam{responses.ToolParamOfFunction("get_weather", parameters, false)}
	}
	last := func(r responses.Response) {
		o.Finish = string(r.Status)
		if r.Usage.TotalTokens > 0 {
			o.Usage = fmt.Sprintf("%d + %d", r.Usage.InputTokens, r.Usage.OutputTokens)
		}
	}
	if !c.Stream {
		answer, err := client.Responses.New(ctx, ask)
		if err != nil {
			return err
		}
		o.add(answer.OutputText())
		last(*answer)
		for _, item := range answer.Output {
			if item.Type == "function_call" {
				o.Tools += item.Name + item.AsFunctionCall().Arguments
			}
		}
		return nil
	}
	stream := client.Responses.NewStreaming(ctx, ask)
	for stream.Next() {
		switch event := stream.Current(); event.Type {
		case "response.output_text.delta":
			o.add(event.Delta)
		case "response.function_call_arguments.delta":
			o.Tools += event.Delta
		case "response.completed", "response.incomplete", "response.failed":
			last(event.Response)
			note(&o.Message, event.Response.Error.Message)
		case "error":
			o.Finish, o.Message = "error event", event.Message
		}
	}
	return stream.Err()
}

func embed(ctx context.Context, c call, o *outcome) error {
	client := openAI(c)
	answer, err := client.Embeddings.New(ctx, openai.EmbeddingNewParams{Model: c.Model, Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"a", "b"}}})
	if err != nil {
		return err
	}
	for _, d := range answer.Data {
		o.add(fmt.Sprint(d.Embedding))
	}
	return nil
}

func speak(ctx context.Context, c call, o *outcome) error {
	client := openAI(c)
	resp, err := client.Audio.Speech.New(ctx, openai.AudioSpeechNewParams{
		Model: c.Model, Input: question, Voice: openai.AudioSpeechNewParamsVoiceUnion{OfString: openai.String("alloy")}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	sound, err := io.ReadAll(resp.Body)
	o.add(fmt.Sprintf("%d bytes", len(sound)))
	return err
}

// --- Anthropic's

func anthropicClient(c call) anthropic.Client {
	opts := []anthropicoption.RequestOption{anthropicoption.WithBaseURL(c.URL), anthropicoption.WithAPIKey("unused")}
	for name, value := range c.Headers {
		opts = append(opts, anthropicoption.WithHeader(name, value))
	}
	if c.Options.Retries != nil {
		opts = append(opts, anthropicoption.WithMaxRetries(*c.Options.Retries))
	}
	if c.Options.Timeout > 0 {
		opts = append(opts, anthropicoption.WithRequestTimeout(time.Duration(c.Options.Timeout)*time.Millisecond))
	}
	return anthropic.NewClient(opts...)
}

func messages(ctx context.Context, c call, o *outcome) error {
	client := anthropicClient(c)
	ask := anthropic.MessageNewParams{Model: c.Model, MaxTokens: 100, Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(question))}}
	if c.Options.Tools {
		ask.Tools = []anthropic.ToolUnionParam{{OfTool: &anthropic.ToolParam{Name: "get_weather", InputSchema: anthropic.ToolInputSchemaParam{Properties: parameters["properties"]}}}}
	}
	whole := func(m anthropic.Message) {
		o.Finish, o.Usage = string(m.StopReason), fmt.Sprintf("%d + %d", m.Usage.InputTokens, m.Usage.OutputTokens)
		for _, part := range m.Content {
			o.Tools += strings.TrimPrefix(string(part.Input), "null")
		}
	}
	if !c.Stream {
		answer, err := client.Messages.New(ctx, ask)
		if err != nil {
			return err
		}
		for _, part := range answer.Content {
			o.add(part.Text)
		}
		whole(*answer)
		return nil
	}
	stream := client.Messages.NewStreaming(ctx, ask)
	var answer anthropic.Message
	for stream.Next() {
		event := stream.Current()
		if err := answer.Accumulate(event); err != nil {
			return err
		}
		o.add(event.Delta.Text)
	}
	whole(answer)
	return stream.Err()
}

func count(ctx context.Context, c call, o *outcome) error {
	client := anthropicClient(c)
	n, err := client.Messages.CountTokens(ctx, anthropic.MessageCountTokensParams{Model: c.Model, Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(question))}})
	if err != nil {
		return err
	}
	o.add(fmt.Sprint(n.InputTokens))
	return nil
}
