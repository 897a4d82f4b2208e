package testenv

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// required has the members that objects of the APIs must have, each with what it may be: a JSON type, null, a constant in
// quotes, another object of the list, or a list of these. Further members are allowed.
//
// OpenAI's are those of its OpenAPI document 2.3.0 (github.com/openai/openai-openapi, commit f85dbe2): the schemas
// ErrorResponse, Error, ListModelsResponse, Model, ResponseFailedEvent, Response and ResponseError. Anthropic's are those of
// its reference of errors and of the types ErrorResponse and APIErrorObject of its SDKs.
var required = map[string]map[string]string{
	"ErrorResponse":       {"error": "Error"},
	"Error":               {"type": "string", "message": "string", "param": "string|null", "code": "string|null"},
	"ListModelsResponse":  {"object": `"list"`, "data": "[]Model"},
	"Model":               {"id": "string", "object": `"model"`, "created": "integer", "owned_by": "string"},
	"ResponseFailedEvent": {"type": `"response.failed"`, "sequence_number": "integer", "response": "Response"},
	"Response": {
		"id": "string", "object": `"response"`, "created_at": "number", "error": "ResponseError|null", "incomplete_details": "object|null",
		"instructions": "string|array|null", "model": "string", "tools": "array", "output": "array", "parallel_tool_calls": "boolean",
		"metadata": "object|null", "tool_choice": "string|object", "temperature": "number|null", "top_p": "number|null",
		"status": `"completed"|"failed"|"in_progress"|"cancelled"|"queued"|"incomplete"`, // not required, but one of these
	},
	"ResponseError": {"code": `"server_error"|"rate_limit_exceeded"|"invalid_prompt"`, "message": "string"},

	"Anthropic ErrorResponse": {"type": `"error"`, "error": "Anthropic Error", "request_id": "string|null"},
	"Anthropic Error": {"message": "string", "type": `"invalid_request_error"|"authentication_error"|"billing_error"|"permission_error"|"not_found_error"|` +
		`"request_too_large"|"rate_limit_error"|"timeout_error"|"api_error"|"overloaded_error"`},
}

// CheckObject returns what is wrong with an object of OpenAI's or Anthropic's API, by its name in the list above; nil if
// nothing is.
func CheckObject(name string, text []byte) error {
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return checkKind(name, name, v)
}

func checkKind(path, kinds string, v any) error {
	var errs []string
	for kind := range strings.SplitSeq(kinds, "|") {
		err := checkOne(path, kind, v)
		if err == nil {
			return nil
		}
		errs = append(errs, err.Error())
	}
	return fmt.Errorf("%s", strings.Join(errs, "; or "))
}

func checkOne(path, kind string, v any) error {
	if of, ok := strings.CutPrefix(kind, "[]"); ok {
		list, ok := v.([]any)
		if !ok {
			return fmt.Errorf("%s is %v, not a list", path, v)
		}
		for i, e := range list {
			if err := checkKind(fmt.Sprintf("%s[%d]", path, i), of, e); err != nil {
				return err
			}
		}
		return nil
	}
	ok := false
	switch kind {
	case "null":
		ok = v == nil
	case "string":
		_, ok = v.(string)
	case "boolean":
		_, ok = v.(bool)
	case "array":
		_, ok = v.([]any)
	case "object":
		_, ok = v.(map[string]any)
	case "number", "integer":
		n, is := v.(float64)
		ok = is && (kind == "number" || n == float64(int64(n)))
	default:
		if want, constant := strings.CutPrefix(kind, `"`); constant {
			ok = v == strings.TrimSuffix(want, `"`)
			break
		}
		return checkMembers(path, kind, v)
	}
	if !ok {
		return fmt.Errorf("%s is %v, not %s", path, v, kind)
	}
	return nil
}

func checkMembers(path, name string, v any) error {
	o, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("%s is %v, not an object", path, v)
	}
	members := required[name]
	if members == nil {
		return fmt.Errorf("no object is called %s", name)
	}
	var names []string
	for m := range members {
		names = append(names, m)
	}
	slices.Sort(names)
	for _, m := range names {
		value, there := o[m]
		if !there {
			return fmt.Errorf("%s has no %s", path, m)
		}
		if err := checkKind(path+"."+m, members[m], value); err != nil {
			return err
		}
	}
	return nil
}
