//go:build linux

package control

import (
	"context"
	"io"
	"reflect"
	"strings"
	"time"

	"github.com/kilnhq/kiln/kernel/hardening"
)

// A recorder is a Node that remembers what it was asked, and answers with values
// that have something in every field.
type recorder struct {
	verb, caller string
	args         any
	data         string
	err          error
}

func record[R any](n *recorder, ctx context.Context, verb string, args any) (R, error) {
	n.verb, n.caller, n.args = verb, Caller(ctx), args
	return filled[R](), n.err
}

// twice sends two answers.
func twice[R any](n *recorder, ctx context.Context, verb string, args any, send func(R) error) error {
	r, err := record[R](n, ctx, verb, args)
	for range 2 {
		if err := send(r); err != nil {
			return err
		}
	}
	return err
}

// filled returns a value with something in every field.
func filled[T any]() T {
	var v T
	fill(reflect.ValueOf(&v).Elem(), "x")
	return v
}

func fill(v reflect.Value, name string) {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Date(2026, 7, 1, 2, 3, 4, 5, time.UTC)))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), v.Type().Field(i).Name)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), name)
		}
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"key": "value"}))
	case reflect.String:
		v.SetString(strings.ToLower(name) + "\n\"é")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(len(name)))
	case reflect.Int, reflect.Int32:
		v.SetInt(-int64(len(name)))
	default:
		panic(v.Type().String())
	}
}

func (n *recorder) Identities(ctx context.Context, send func(Identity) error) error {
	return twice(n, ctx, "Identities", nil, send)
}

func (n *recorder) Version(ctx context.Context) (Version, error) {
	return record[Version](n, ctx, "Version", nil)
}

func (n *recorder) Health(ctx context.Context) (Health, error) {
	return record[Health](n, ctx, "Health", nil)
}

func (n *recorder) Services(ctx context.Context) (ServiceList, error) {
	return record[ServiceList](n, ctx, "Services", nil)
}

func (n *recorder) ControlService(ctx context.Context, r ServiceControl) (ServiceResult, error) {
	return record[ServiceResult](n, ctx, "ControlService", r)
}

func (n *recorder) Logs(ctx context.Context, r LogsRequest, send func(LogLine) error) error {
	return twice(n, ctx, "Logs", r, send)
}

func (n *recorder) Dmesg(ctx context.Context, r TailRequest, send func(DmesgLine) error) error {
	return twice(n, ctx, "Dmesg", r, send)
}

func (n *recorder) Events(ctx context.Context, r TailRequest, send func(Event) error) error {
	return twice(n, ctx, "Events", r, send)
}

func (n *recorder) Containers(ctx context.Context, r NamespaceRequest) (ContainerList, error) {
	return record[ContainerList](n, ctx, "Containers", r)
}

func (n *recorder) Images(ctx context.Context, r NamespaceRequest) (ImageList, error) {
	return record[ImageList](n, ctx, "Images", r)
}

func (n *recorder) Modules(ctx context.Context) (ModuleList, error) {
	return record[ModuleList](n, ctx, "Modules", nil)
}

func (n *recorder) Extensions(ctx context.Context) (ExtensionList, error) {
	return record[ExtensionList](n, ctx, "Extensions", nil)
}

func (n *recorder) Hardening(ctx context.Context) (hardening.Report, error) {
	return record[hardening.Report](n, ctx, "Hardening", nil)
}

func (n *recorder) Config(ctx context.Context, r ConfigRequest) (Config, error) {
	return record[Config](n, ctx, "Config", r)
}

func (n *recorder) ApplyConfig(ctx context.Context, r ConfigChange) (ConfigResult, error) {
	return record[ConfigResult](n, ctx, "ApplyConfig", r)
}

func (n *recorder) Meta(ctx context.Context, r MetaRequest) (MetaList, error) {
	return record[MetaList](n, ctx, "Meta", r)
}

func (n *recorder) SetMeta(ctx context.Context, r MetaList) error {
	_, err := record[struct{}](n, ctx, "SetMeta", r)
	return err
}

func (n *recorder) DeleteMeta(ctx context.Context, r MetaKeys) (MetaDeleted, error) {
	return record[MetaDeleted](n, ctx, "DeleteMeta", r)
}

func (n *recorder) Kubeconfig(ctx context.Context) (Kubeconfig, error) {
	return record[Kubeconfig](n, ctx, "Kubeconfig", nil)
}

func (n *recorder) Upgrade(ctx context.Context, r UpgradeRequest, image io.Reader, send func(UpgradeProgress) error) error {
	data, err := io.ReadAll(image)
	if err != nil {
		return err
	}
	n.data = string(data)
	return twice(n, ctx, "Upgrade", r, send)
}

func (n *recorder) Rollback(ctx context.Context, r RollbackRequest) (RollbackResult, error) {
	return record[RollbackResult](n, ctx, "Rollback", r)
}

func (n *recorder) Reset(ctx context.Context, r ResetRequest) error {
	_, err := record[struct{}](n, ctx, "Reset", r)
	return err
}

func (n *recorder) Power(ctx context.Context, r PowerRequest) error {
	_, err := record[struct{}](n, ctx, "Power", r)
	return err
}

func (n *recorder) ReadFile(ctx context.Context, r ReadRequest, send func(FileChunk) error) error {
	return twice(n, ctx, "ReadFile", r, send)
}

func (n *recorder) ListDirectory(ctx context.Context, r ListRequest, send func(FileInfo) error) error {
	return twice(n, ctx, "ListDirectory", r, send)
}
