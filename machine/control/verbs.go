//go:build linux

package control

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// A call is one that the server carries out.
type call struct {
	node Node
	args json.RawMessage
	data io.Reader // of the request; nil for verbs that take none
	send func(any) error
}

// A verb carries out calls.
type verb struct {
	serve func(context.Context, *call) error
	data  bool // takes bytes behind the request
}

// verbs is everything that can be asked.
func verbs() map[string]verb {
	return map[string]verb{
		"identities":      {serve: follow(Node.Identities)},
		"version":         {serve: get(Node.Version)},
		"health":          {serve: get(Node.Health)},
		"services":        {serve: get(Node.Services)},
		"control-service": {serve: ask(Node.ControlService)},
		"logs":            {serve: many(Node.Logs)},
		"dmesg":           {serve: many(Node.Dmesg)},
		"events":          {serve: many(Node.Events)},
		"containers":      {serve: ask(Node.Containers)},
		"images":          {serve: ask(Node.Images)},
		"modules":         {serve: get(Node.Modules)},
		"extensions":      {serve: get(Node.Extensions)},
		"hardening":       {serve: get(Node.Hardening)},
		"config":          {serve: ask(Node.Config)},
		"apply-config":    {serve: ask(applyConfig)},
		"meta":            {serve: ask(listMeta)},
		"set-meta":        {serve: do(Node.SetMeta)},
		"delete-meta":     {serve: ask(Node.DeleteMeta)},
		"kubeconfig":      {serve: get(Node.Kubeconfig)},
		"upgrade":         {serve: upload(Node.Upgrade), data: true},
		"rollback":        {serve: ask(Node.Rollback)},
		"reset":           {serve: do(Node.Reset)},
		"power":           {serve: do(Node.Power)},
		"read-file":       {serve: many(Node.ReadFile)},
		"list-directory":  {serve: many(Node.ListDirectory)},
	}
}

func get[R any](f func(Node, context.Context) (R, error)) func(context.Context, *call) error {
	return func(ctx context.Context, c *call) error {
		r, err := f(c.node, ctx)
		if err != nil {
			return err
		}
		return c.send(r)
	}
}

func ask[A, R any](f func(Node, context.Context, A) (R, error)) func(context.Context, *call) error {
	return func(ctx context.Context, c *call) error {
		var args A
		if err := strict(c.args, &args); err != nil {
			return err
		}
		r, err := f(c.node, ctx, args)
		if err != nil {
			return err
		}
		return c.send(r)
	}
}

func do[A any](f func(Node, context.Context, A) error) func(context.Context, *call) error {
	return func(ctx context.Context, c *call) error {
		var args A
		if err := strict(c.args, &args); err != nil {
			return err
		}
		return f(c.node, ctx, args)
	}
}

func follow[R any](f func(Node, context.Context, func(R) error) error) func(context.Context, *call) error {
	return func(ctx context.Context, c *call) error {
		return f(c.node, ctx, func(r R) error { return c.send(r) })
	}
}

func many[A, R any](f func(Node, context.Context, A, func(R) error) error) func(context.Context, *call) error {
	return func(ctx context.Context, c *call) error {
		var args A
		if err := strict(c.args, &args); err != nil {
			return err
		}
		return f(c.node, ctx, args, func(r R) error { return c.send(r) })
	}
}

func upload[A, R any](f func(Node, context.Context, A, io.Reader, func(R) error) error) func(context.Context, *call) error {
	return func(ctx context.Context, c *call) error {
		var args A
		if err := strict(c.args, &args); err != nil {
			return err
		}
		return f(c.node, ctx, args, c.data, func(r R) error { return c.send(r) })
	}
}

// maxDiff is the length that a diff is cut to, in bytes.
const maxDiff = 256 << 10

func applyConfig(n Node, ctx context.Context, change ConfigChange) (ConfigResult, error) {
	if len(change.Config) > MaxConfig {
		return ConfigResult{}, fmt.Errorf("%w: configuration of %d bytes, want at most %d", ErrInvalid, len(change.Config), MaxConfig)
	}
	r, err := n.ApplyConfig(ctx, change)
	if len(r.Diff) > maxDiff {
		cut := strings.LastIndexByte(r.Diff[:maxDiff], '\n') + 1
		r.Diff = r.Diff[:cut] + fmt.Sprintf("\\ %d more bytes\n", len(r.Diff)-cut)
	}
	return r, err
}

func listMeta(n Node, ctx context.Context, r MetaRequest) (MetaList, error) {
	l, err := n.Meta(ctx, r)
	if !r.Secrets {
		l.redact()
	}
	return l, err
}
