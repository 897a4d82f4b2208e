package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// chat is a conversation with a model through a gateway, or any other server with the API of OpenAI.
type chat struct {
	ingress
	system, tier string
	maxTokens    int

	model    string
	messages []chatMessage
}

type chatMessage struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

func newChatCommand() *cobra.Command {
	c := &chat{}
	cmd := &cobra.Command{
		Use:   "chat [MODEL] [PROMPT]...",
		Short: "Type prompts to a model",
		Long: `Send prompts to a model through a gateway, and print the answers as they come. With
PROMPT the command ends after its answer. Without it, each line of standard input is a
prompt, and the conversation so far goes with it, until the end of the input. Without
MODEL the only model is asked.

The API key is that of the environment variable that --api-key-env names.`,
		Example: `  pulley chat llama
  pulley chat llama 'Why is the sky blue?'
  echo 'Say hello.' | pulley chat llama --url http://gateway-1:8080`,
		Args: cobra.ArbitraryArgs,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			ctx, cancel := context.WithTimeout(context.Background(), cli.CompletionTimeout)
			defer cancel()
			models, _ := c.models(ctx)
			return models, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error { return c.run(cmd, args) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	c.ingress.addFlags(fs)
	fs.StringVar(&c.system, "system", "", "system `prompt`")
	fs.StringVar(&c.tier, "tier", "", "service `tier` to ask for")
	fs.IntVar(&c.maxTokens, "max-tokens", 0, "maximum length of an answer (default as the engine says)")
	return cmd
}

func (c *chat) run(cmd *cobra.Command, args []string) error {
	ctx := cmd.Context()
	if len(args) > 0 {
		c.model = args[0]
	} else if err := c.onlyModel(ctx); err != nil {
		return err
	}
	if c.system != "" {
		c.messages = append(c.messages, chatMessage{"system", c.system})
	}
	if len(args) > 1 {
		return c.ask(ctx, strings.Join(args[1:], " "), cmd.OutOrStdout())
	}
	people := cli.Interactive(cmd.InOrStdin())
	if people {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s at %s; Ctrl-D ends\n", term.Printable(c.model), c.url)
	}
	lines := make(chan string)
	go func() { // without an end of the input it ends with the process
		defer close(lines)
		in := bufio.NewReader(cmd.InOrStdin())
		for {
			line, err := in.ReadString('\n')
			if line = strings.TrimSpace(line); line != "" {
				select {
				case lines <- line:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		if people {
			fmt.Fprint(cmd.ErrOrStderr(), "> ")
		}
		select {
		case line, more := <-lines:
			if !more {
				return nil
			}
			err := c.ask(ctx, line, cmd.OutOrStdout())
			if err != nil && (!people || ctx.Err() != nil) {
				return err
			}
			if err != nil { // a person may try again
				fmt.Fprintf(cmd.ErrOrStderr(), "pulley: %v\n", err)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// onlyModel chooses the model that the server has, if that is a single one.
func (c *chat) onlyModel(ctx context.Context) error {
	models, err := c.models(ctx)
	switch {
	case err != nil:
		return err
	case len(models) == 0:
		return cli.NotFoundf("no worker serves a model at %s now", c.url)
	case len(models) > 1:
		return cli.Usagef("missing argument: MODEL, one of %s", term.Shorten(cli.OneOf(models), 160))
	}
	c.model = models[0]
	return nil
}

func (c *chat) models(ctx context.Context) (names []string, err error) {
	resp, err := c.send(ctx, http.MethodGet, "/v1/models", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var list struct{ Data []struct{ ID string } }
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(&list); err != nil {
		return nil, fmt.Errorf("list of models at %s: %w", c.url, err)
	}
	for _, m := range list.Data {
		names = append(names, m.ID)
	}
	return names, nil
}

// ask sends a prompt and prints the answer. Both become part of the conversation if the answer is whole.
func (c *chat) ask(ctx context.Context, prompt string, out io.Writer) error {
	messages := append(c.messages[:len(c.messages):len(c.messages)], chatMessage{"user", prompt})
	body, err := json.Marshal(struct {
		Model       string        `json:"model"`
		Stream      bool          `json:"stream"`
		MaxTokens   int           `json:"max_tokens,omitempty"`
		ServiceTier string        `json:"service_tier,omitempty"`
		Messages    []chatMessage `json:"messages"`
	}{c.model, true, c.maxTokens, c.tier, messages})
	if err != nil {
		return err
	}
	resp, err := c.send(ctx, http.MethodPost, "/v1/chat/completions", body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	terminal := term.Of(out).Width > 0
	answer, err := readAnswer(resp.Body, func(text string) {
		if terminal {
			text = term.PrintableLines(text)
		}
		io.WriteString(out, text)
	})
	fmt.Fprintln(out)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		c.messages = append(messages, chatMessage{"assistant", answer})
	}
	return err
}

// readAnswer reads a stream of events, and calls show with each part of the answer. A stream that ends without its last event
// is an error.
func readAnswer(stream io.Reader, show func(string)) (answer string, err error) {
	var text strings.Builder
	in := bufio.NewScanner(stream)
	in.Buffer(nil, 4<<20)
	for in.Scan() {
		data, ok := bytes.CutPrefix(in.Bytes(), []byte("data:"))
		if !ok {
			continue // a comment, or an empty line
		}
		if data = bytes.TrimSpace(data); bytes.Equal(data, []byte("[DONE]")) {
			return text.String(), nil
		}
		if why := errorIn(data); why != "" {
			return text.String(), errors.New(why)
		}
		var event struct {
			Choices []struct {
				Delta struct {
					Content          string
					ReasoningContent string `json:"reasoning_content"`
				}
			}
		}
		if err := json.Unmarshal(data, &event); err != nil {
			return text.String(), fmt.Errorf("answer: %w", err)
		}
		for _, choice := range event.Choices {
			text.WriteString(choice.Delta.Content)
			show(cmp.Or(choice.Delta.Content, choice.Delta.ReasoningContent))
		}
	}
	return text.String(), cmp.Or(in.Err(), errors.New("the answer broke off"))
}
