package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// ParseYAML parses a document that must be a mapping; it returns nil if b is empty.
// Its errors begin with the line number and a colon.
func ParseYAML(b []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, YAMLError(err)
	}
	top := doc.Content[0]
	if top.ShortTag() == "!!null" {
		return nil, nil
	}
	if top.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%d: must be 'key: value' lines", top.Line)
	}
	if err := dec.Decode(&more); err == nil {
		return nil, fmt.Errorf("%d: must be one YAML document, not several", more.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, YAMLError(err)
	}
	return top, nil
}

// YAMLError returns an error of the YAML library in the form "line: reason".
func YAMLError(err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		return errors.New(rest)
	}
	return errors.New(" " + text)
}

// EncodeYAML encodes a value with an indent of two spaces.
func EncodeYAML(value any) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(value); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

// yamlOf encodes a value as YAML with the names and the order of its JSON.
func yamlOf(value any) ([]byte, error) {
	b, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil { // JSON is YAML
		return nil, err
	}
	var blockStyle func(n *yaml.Node)
	blockStyle = func(n *yaml.Node) {
		n.Style = 0
		for _, c := range n.Content {
			blockStyle(c)
		}
	}
	blockStyle(&doc)
	return EncodeYAML(&doc)
}

// resolveAlias returns the node that an alias stands for.
func resolveAlias(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}
