// Asks a Nexus server for one prediction by both of its APIs: make && ./client 127.0.0.1:8001
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	inferencepb "nexus.example/client/pb/inference"
	nexuspb "nexus.example/client/pb/nexus/v1"
)

const timeout = 10 * time.Second

var row = []float64{5.1, 3.5, 1.4, 0.2}

func main() {
	address := "127.0.0.1:8001"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	if err := run(address); err != nil {
		fmt.Fprintf(os.Stderr, "client: %s answered %s: %s\n", address, status.Code(err), status.Convert(err).Message())
		os.Exit(1)
	}
}

func run(address string) error {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	if err := predict(nexuspb.NewInferenceClient(connection)); err != nil {
		return err
	}
	return modelInfer(inferencepb.NewGRPCInferenceServiceClient(connection))
}

// nexus.v1: a model and its features in, a prediction out.
func predict(client nexuspb.InferenceClient) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	answer, err := client.Predict(ctx, &nexuspb.PredictRequest{ModelId: "iris", Features: row})
	if err != nil {
		return err
	}
	fmt.Printf("Predict: prediction %.0f, probabilities %s\n", answer.Prediction[0], joined(answer.Probabilities))
	return nil
}

// The Open Inference Protocol: tensors, as little-endian bytes.
func modelInfer(client inferencepb.GRPCInferenceServiceClient) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var raw []byte
	for _, value := range row {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(float32(value)))
	}
	answer, err := client.ModelInfer(ctx, &inferencepb.ModelInferRequest{
		ModelName: "iris",
		Inputs: []*inferencepb.ModelInferRequest_InferInputTensor{
			{Name: "X", Datatype: "FP32", Shape: []int64{1, int64(len(row))}},
		},
		RawInputContents: [][]byte{raw},
	})
	if err != nil {
		return err
	}
	// One raw content per output, in the model's order: label (INT64), probabilities (FP32).
	label := int64(binary.LittleEndian.Uint64(answer.RawOutputContents[0]))
	var probabilities []float64
	for raw := answer.RawOutputContents[1]; len(raw) > 0; raw = raw[4:] {
		probabilities = append(probabilities, float64(math.Float32frombits(binary.LittleEndian.Uint32(raw))))
	}
	fmt.Printf("ModelInfer: label %d, probabilities %s\n", label, joined(probabilities))
	return nil
}

func joined(values []float64) string {
	var words []string
	for _, value := range values {
		words = append(words, fmt.Sprintf("%.4f", value))
	}
	return strings.Join(words, " ")
}
