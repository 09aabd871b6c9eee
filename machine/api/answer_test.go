//go:build linux

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/kernel/hardening"
	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/nodeinfo"
)

// Every type that is an answer becomes its message: nothing in it is unknown
// there, and nothing there stays empty.
func TestConvertEveryType(t *testing.T) {
	for _, c := range []struct {
		from any
		to   proto.Message
	}{
		{control.Version{}, &v1alpha1.VersionResponse{}},
		{control.Health{}, &v1alpha1.HealthResponse{}},
		{control.ServiceList{}, &v1alpha1.ServicesResponse{}},
		{control.ServiceResult{}, &v1alpha1.ServiceControlResponse{}},
		{control.LogLine{}, &v1alpha1.LogLine{}},
		{control.DmesgLine{}, &v1alpha1.DmesgLine{}},
		{control.Event{}, &v1alpha1.Event{}},
		{control.ContainerList{}, &v1alpha1.ContainersResponse{}},
		{control.ImageList{}, &v1alpha1.ImagesResponse{}},
		{control.ModuleList{}, &v1alpha1.ModulesResponse{}},
		{control.ExtensionList{}, &v1alpha1.ExtensionsResponse{}},
		{hardening.Report{}, &v1alpha1.HardeningResponse{}},
		{control.Config{}, &v1alpha1.ConfigGetResponse{}},
		{control.ConfigResult{}, &v1alpha1.ConfigApplyResponse{}},
		{control.MetaList{}, &v1alpha1.MetaListResponse{}},
		{control.MetaDeleted{}, &v1alpha1.MetaDeleteResponse{}},
		{control.Kubeconfig{}, &v1alpha1.KubeconfigResponse{}},
		{control.UpgradeProgress{}, &v1alpha1.UpgradeProgress{}},
		{control.RollbackResult{}, &v1alpha1.RollbackResponse{}},
		{control.FileChunk{}, &v1alpha1.FileChunk{}},
		{control.FileInfo{}, &v1alpha1.FileInfo{}},
		{nodeinfo.Process{}, &v1alpha1.Process{}},
		{nodeinfo.Memory{}, &v1alpha1.MemoryResponse{}},
		{nodeinfo.Mount{}, &v1alpha1.Mount{}},
		{nodeinfo.Stats{}, &v1alpha1.StatsResponse{}},
	} {
		name := c.to.ProtoReflect().Descriptor().Name()
		v := reflect.New(reflect.TypeOf(c.from))
		if err := protojson.Unmarshal(marshal(t, v.Interface()), c.to); err != nil {
			t.Errorf("%s, empty: %v", name, err)
		}
		fill(v.Elem())
		proto.Reset(c.to)
		if err := protojson.Unmarshal(marshal(t, v.Interface()), c.to); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		unset(c.to.ProtoReflect(), func(f protoreflect.FieldDescriptor) { t.Errorf("%s has nothing in %s", name, f.FullName()) })
	}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// fill puts something into every exported field.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(clock()))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i))
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"key": "value"}))
	case reflect.String:
		v.SetString("text \xff")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint64:
		v.SetUint(1<<64 - 1)
	case reflect.Uint8, reflect.Uint32:
		v.SetUint(7)
	case reflect.Int, reflect.Int32:
		v.SetInt(-7)
	case reflect.Float64:
		v.SetFloat(0.25)
	default:
		panic(v.Type().String())
	}
}

// unset calls f for every field without a value.
func unset(m protoreflect.Message, f func(protoreflect.FieldDescriptor)) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		d := fields.Get(i)
		if !m.Has(d) {
			f(d)
			continue
		}
		if d.Message() == nil || d.IsMap() || d.Message().FullName() == "google.protobuf.Timestamp" {
			continue
		}
		if d.IsList() {
			unset(m.Get(d).List().Get(0).Message(), f)
		} else {
			unset(m.Get(d).Message(), f)
		}
	}
}

func TestFailure(t *testing.T) {
	for err, want := range map[error]codes.Code{
		control.ErrUnimplemented: codes.Unimplemented, control.ErrInvalid: codes.InvalidArgument, control.ErrState: codes.FailedPrecondition,
		control.ErrBusy: codes.ResourceExhausted, control.ErrUnreachable: codes.Unavailable, control.ErrProtocol: codes.Internal,
		fs.ErrNotExist: codes.NotFound, fs.ErrPermission: codes.PermissionDenied, fs.ErrExist: codes.AlreadyExists,
		context.Canceled: codes.Canceled, context.DeadlineExceeded: codes.DeadlineExceeded, errors.New("other"): codes.Unknown,
		status.Error(codes.DataLoss, "lost"): codes.DataLoss,
	} {
		wrapped := fmt.Errorf("because: %w", err)
		if got := failure(wrapped); status.Code(got) != want || !strings.HasSuffix(status.Convert(got).Message(), status.Convert(err).Message()) {
			t.Errorf("%v became %v, want %v", wrapped, got, want)
		}
	}
	if failure(nil) != nil {
		t.Error("an error of none")
	}
}
